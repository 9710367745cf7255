//! The loop by hand: `cargo run --release -p scalebench-fuzz --example fuzz -- TARGET|all EXECUTIONS [SEED [SECONDS]]`; with `seeds FOLDER`
//! in place of these, what the loop begins with becomes files, a folder for each target, as cargo-fuzz wants its corpora.
//!
//! A line every million executions; an input that panics or takes five seconds of processor time is written to `findings/` and ends the loop of its target. Under
//! `ulimit -v`, an input that asks for all memory aborts the process: it is the file `current` there.

#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use scalebench_fuzz::{Found, Loop, TARGETS, Target};

const LARGEST: usize = 1 << 14;

/// The largest WebP of one colour, a gigabyte of pixels in 34 bytes, takes more than one second.
const SLOWEST: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = || {
        println!("usage: fuzz TARGET|all EXECUTIONS [SEED [SECONDS]] | fuzz seeds FOLDER");
        println!("targets: {}", TARGETS.map(|target| target.name).join(" "));
        ExitCode::from(2)
    };
    let [name, executions, rest @ ..] = &args[..] else { return usage() };
    if name == "seeds" {
        return seeds(Path::new(executions));
    }
    let number = |at: usize, otherwise: u64| rest.get(at).map_or(Ok(otherwise), |text| text.parse::<u64>());
    let (Ok(executions), Ok(seed), Ok(seconds)) = (executions.parse::<u64>(), number(0, 0), number(1, u64::MAX)) else {
        return usage();
    };
    let chosen: Vec<Target> = TARGETS.into_iter().filter(|target| name == "all" || target.name == name).collect();
    if chosen.is_empty() {
        return usage();
    }
    // Panics are findings; their text is kept with the input.
    std::panic::set_hook(Box::new(|_| ()));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings");
    if let Err(error) = std::fs::create_dir_all(&folder) {
        println!("cannot create {}: {error}", folder.display());
        return ExitCode::from(2);
    }
    let mut bad = false;
    for target in chosen {
        let start = Instant::now();
        let mut turns = Loop::new(target, seed, LARGEST, SLOWEST);
        let found = run(&mut turns, target, executions, Duration::from_secs(seconds), &folder);
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{}: {} executions in {seconds:.0} s, {} accepted, {} different outcomes, the longest {:?}",
            target.name,
            turns.executions,
            turns.accepted,
            turns.outcomes(),
            turns.longest
        );
        if let Err(Found { input, problem }) = found {
            let file = folder.join(format!("{}-{seed}-{}", target.name, turns.executions));
            println!("{}: {problem}: {}", target.name, file.display());
            if let Err(error) = std::fs::write(&file, &input) {
                println!("cannot write {}: {error}", file.display());
            }
            bad = true;
        }
    }
    if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Writes what the loops begin with: one file each, in folders by the targets' names.
fn seeds(folder: &Path) -> ExitCode {
    for target in TARGETS {
        let folder = folder.join(target.name);
        let written = std::fs::create_dir_all(&folder).and_then(|()| {
            (target.seeds)().iter().enumerate().try_for_each(|(i, seed)| std::fs::write(folder.join(format!("{i:03}")), seed))
        });
        if let Err(error) = written {
            println!("cannot write {}: {error}", folder.display());
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn run(turns: &mut Loop, target: Target, executions: u64, most: Duration, folder: &Path) -> Result<(), Found> {
    let start = Instant::now();
    turns.seeds()?;
    let current = folder.join(format!("current-{}", target.name));
    while turns.executions < executions {
        // In memory readers may abort; files are there anyway. One input in a thousand tells where it was: the rest follows from the seed.
        let is_shown = turns.executions.is_multiple_of(1000);
        turns.step(&mut |input| {
            if is_shown {
                let _ = std::fs::write(&current, input);
            }
        })?;
        if is_shown && start.elapsed() > most {
            break;
        }
        if turns.executions.is_multiple_of(1_000_000) {
            println!("{}: {} million, {} outcomes", target.name, turns.executions / 1_000_000, turns.outcomes());
        }
    }
    let _ = std::fs::remove_file(&current);
    Ok(())
}
