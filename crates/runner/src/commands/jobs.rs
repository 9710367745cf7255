//! `scalebench jobs`

use std::io::Write as _;

use anyhow::{Context, Result, bail};

use super::sweep;
use crate::cli::Jobs;
use crate::experiment::jobs;
use crate::experiment::resolve::Needs;
use crate::report::tables;
use crate::run::store::write_file;

pub(super) fn run(args: &Jobs) -> Result<()> {
    let prepared = sweep::prepare_with(&args.experiment, &args.set, None, Needs::AllButBrought)?;
    let rows = jobs::rows(&prepared.resolved, &prepared.plan)?;
    let Some(out) = &args.out else {
        return std::io::stdout().write_all(&tables::jobs_csv(&rows)?).context("cannot write to stdout");
    };
    let ending = out.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let bytes = match ending.as_str() {
        "csv" => tables::jobs_csv(&rows)?,
        "parquet" => tables::jobs_parquet(&rows)?,
        "jsonl" => rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n")).collect::<Result<String>>()?.into_bytes(),
        _ => bail!("--out {}: expected a file that ends in .csv, .parquet or .jsonl", out.display()),
    };
    write_file(out, &bytes)?;
    eprintln!("{} images in {}", rows.len(), out.display());
    Ok(())
}
