//! `scalebench results`

use std::io::Write as _;

use anyhow::{Context, Result};

use crate::cli::{Results, TableFormat};
use crate::compare::judge::check_comparable;
use crate::report::folder::NOT_COMPARABLE;
use crate::report::{latex, tables};
use crate::run::file::RunFile;
use crate::run::shard::Shard;
use crate::run::store::Store;

pub(super) fn run(args: &Results) -> Result<()> {
    let mut runs = Vec::new();
    for folder in &args.runs {
        let store = Store::new(folder, Shard::WHOLE);
        let (described, mut rows) = (RunFile::read(&store)?.experiment, tables::read(&store)?);
        if let Some((first, _, _)) = runs.first() {
            check_comparable(first, &described).with_context(|| format!("{} and {}", args.runs[0].display(), folder.display()))?;
            // Who is best was decided within a run, by paired differences.
            rows.iter_mut().flat_map(|row| &mut row.scores).for_each(|score| score.standing = None);
        }
        runs.push((described, folder.display().to_string(), rows));
    }
    if let [_, _, ..] = runs[..] {
        runs[0].2.iter_mut().flat_map(|row| &mut row.scores).for_each(|score| score.standing = None);
    }
    let (first, note) = (&runs[0].0, if runs[0].0.metrics.comparable() { "" } else { NOT_COMPARABLE });
    let joined: Vec<_> = runs.iter().flat_map(|(_, folder, rows)| rows.iter().map(|row| (folder.clone(), row.clone()))).collect();
    match args.format {
        TableFormat::Csv => std::io::stdout().write_all(&tables::joined_csv(&joined)?).context("cannot write to stdout")?,
        TableFormat::Json => println!("{}", tables::joined_json(&joined)?),
        TableFormat::Markdown => {
            print!("{}", tables::markdown(&tables::told_apart(&joined)));
            if !note.is_empty() {
                println!("\n{note}");
            }
        }
        TableFormat::Latex => {
            let mut all = first.clone();
            for (described, _, _) in &runs[1..] {
                let new = |name: &str| all.models.iter().all(|known| known.name != name);
                let models: Vec<_> = described.models.iter().filter(|model| new(&model.name)).cloned().collect();
                all.models.extend(models);
                let methods: Vec<_> =
                    described.methods.iter().filter(|method| all.methods.iter().all(|known| known.name != method.name)).cloned().collect();
                all.methods.extend(methods);
            }
            print!("{}", latex::table(&all, &tables::told_apart(&joined), note));
        }
    }
    Ok(())
}
