//! `scalebench`: plans, runs and reports evaluations of tuning-free high-resolution sampling.
//!
//! | folder | what |
//! | --- | --- |
//! | `commands`, `cli` | what can be asked for on the command line |
//! | `compare` | run against run: tests, verdicts, histories |
//! | `site` | many runs as a static site |
//! | `report` | showing a run: tables, charts, heat maps, grids, the page |
//! | `cost` | what an experiment costs: operations, seconds, memory |
//! | `run` | making a run: its directory, images, features and scores, and what it says meanwhile |
//! | `experiment` | what was asked, as written and as it will run |
//! | `words`, `host` | text for people; this machine and this process |
//!
//! A module imports from its own folder and from those below it, never from above, and never in a circle; `tests/imports.rs` holds to
//! it.
//!
//! Data goes to stdout, talk to stderr. Every failure is one line on stderr and exit status 2;
//! 1 is left for what was measured and found worse, 75 for a sweep that was told to stop.
//!
//! ```no_run
//! // All of the program, as its `main.rs` has it.
//! #[global_allocator]
//! static ALLOCATOR: scalebench::OrStop = scalebench::OrStop;
//!
//! fn main() -> std::process::ExitCode {
//!     scalebench::main()
//! }
//! ```

#![allow(clippy::print_stdout, reason = "stdout is this program's data channel")]

mod cli;
mod commands;
mod compare;
mod cost;
mod experiment;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod report;
mod run;
mod site;
mod words;

use std::process::ExitCode;

use clap::Parser;

pub use crate::host::memory::OrStop;

use crate::host::interrupt::{self, Interrupted};
use crate::host::memory;
use crate::run::progress::{self, Event};

/// The program: what the command line asks for.
///
/// Example: [this crate](crate).
pub fn main() -> ExitCode {
    // Errors are one line: what RUST_BACKTRACE asks for is of panics.
    // SAFETY: no other thread has been started.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    memory::keep_freed();
    memory::on_exhaustion(|bytes| {
        progress::say(&Event::Error { text: &format!("out of memory: {bytes} bytes more are not to be had") });
    });
    fail_where_stdout_does();
    match commands::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) if error.is::<Interrupted>() => {
            progress::say(&Event::Stopped { text: &Interrupted.to_string() });
            ExitCode::from(interrupt::STATUS)
        }
        Err(error) => {
            // One line, whatever the libraries below say.
            progress::say(&Event::Error { text: &format!("{error:#}").replace('\n', " ") });
            ExitCode::from(2)
        }
    }
}

/// `print!` panics where it cannot write: to a full disk, or to a program that has ended.
fn fail_where_stdout_does() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().and_then(|text| text.strip_prefix("failed printing to stdout: "));
        match text {
            Some(reason) => {
                progress::say(&Event::Error { text: &format!("cannot write to stdout: {reason}") });
                std::process::exit(2);
            }
            None => others(panic),
        }
    }));
}
