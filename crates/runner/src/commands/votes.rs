//! `scalebench votes`

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cli::Votes;
use crate::compare::votes::{self, Rate};
use crate::report::blind::Key;
use crate::words::table::aligned;

pub(super) fn run(args: &Votes) -> Result<()> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let key: Key = serde_json::from_str(&read(&args.key)?)
        .map_err(|error| anyhow::anyhow!("{}: {error}; expected the key that `scalebench grid --blind` wrote", args.key.display()))?;
    let mut files = BTreeMap::new();
    for path in &args.votes {
        if files.insert(path.display().to_string(), read(path)?).is_some() {
            bail!("{}: is there twice", path.display());
        }
    }
    let found = votes::count(&key, &files.into_iter().collect::<Vec<_>>(), args.level)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    let percent = |x: f64| format!("{:.1}", 100.0 * x);
    let line = |what: &str, rate: &Rate| {
        let interval = format!("{} to {}", percent(rate.lo), percent(rate.hi));
        vec![what.to_owned(), rate.wins.to_string(), rate.of.to_string(), percent(rate.rate), interval, format!("{:.2e}", rate.p)]
    };
    let level = format!("{}% interval", 100.0 * args.level);
    let mut lines = vec![["", "wins", "of", "%", &level, "p"].map(str::to_owned).to_vec(), line("votes", &found.votes)];
    lines.extend(found.pairs.as_ref().map(|pairs| line("pairs by majority", pairs)));
    lines.extend(found.voters.iter().filter(|_| found.voters.len() > 1).map(|(name, rate)| line(name, rate)));
    lines.push(line("left side", &found.left));
    println!("{} over {} ({} at {}): {}", found.a, found.b, found.model, found.scale, found.question);
    print!("{}", aligned(&lines));
    Ok(())
}
