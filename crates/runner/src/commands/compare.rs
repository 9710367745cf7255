//! `scalebench compare`

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Compare, Judge};
use crate::compare::finished::Run;
use crate::compare::judge::{self, Comparison, Costs, Criteria};
use crate::compare::verdicts;
use crate::run::store::write_file;

/// Exit status of a comparison that found a regression.
const REGRESSED: u8 = 1;

pub(super) fn run(args: &Compare) -> Result<ExitCode> {
    let criteria = criteria(args.judge)?;
    let (baseline, run) = (Run::open(&args.baseline)?, Run::open(&args.dir)?);
    let costs = Costs { speed: !args.no_speed, memory: !args.no_memory };
    let comparison = judge::compare(&baseline, &run, criteria, costs)?;
    if let Some(file) = &args.junit {
        write_file(file, verdicts::junit(&comparison).as_bytes())?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&comparison)?);
    } else {
        print!("{}", verdicts::text(&comparison));
    }
    Ok(status(&comparison))
}

pub(super) fn criteria(judge: Judge) -> Result<Criteria> {
    Criteria { alpha: judge.alpha, slow_down: judge.slow_down, clock: judge.clock, more_memory: judge.more_memory }.check()
}

pub(super) fn status(comparison: &Comparison) -> ExitCode {
    if comparison.regressions.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REGRESSED) }
}
