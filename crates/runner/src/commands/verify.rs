//! `scalebench verify`

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::Verify;
use crate::compare::verify;

/// Exit status of a run in which something is wrong.
const WRONG: u8 = 1;

pub(super) fn run(args: &Verify) -> Result<ExitCode> {
    let found = verify::verify(&args.dir)?;
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        found.wrong.iter().for_each(|wrong| println!("{}: {}", wrong.file, wrong.problem));
        match found.wrong.len() {
            0 => println!("{}: whole; {} files", args.dir.display(), found.files),
            n => println!("{}: {n} of {} files are not as they should be", args.dir.display(), found.files),
        }
    }
    Ok(if found.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}
