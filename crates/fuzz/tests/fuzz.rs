//! Some turns of the loop over every reader, and what was found before.

use std::path::Path;
use std::time::Duration;

use scalebench_fuzz::{Loop, TARGETS};

/// Turns of each target: all of them together take seconds.
const TURNS: usize = 4000;

fn check(outcome: Result<(), scalebench_fuzz::Found>, target: &str) {
    if let Err(found) = outcome {
        panic!("{target}: {}: {:?}", found.problem, String::from_utf8_lossy(&found.input[..found.input.len().min(2000)]));
    }
}

#[test]
fn readers_come_back_whatever_they_read() {
    for target in TARGETS {
        // Generous, for a machine that is busy with other tests.
        let mut turns = Loop::new(target, 1, 1 << 13, Duration::from_secs(30));
        check(turns.seeds(), target.name);
        assert!(turns.accepted > 0 || target.name == "tables", "{}: none of the seeds is valid", target.name);
        (0..TURNS).for_each(|_| check(turns.step(&mut |_| ()), target.name));
        assert!(turns.outcomes() > 3, "{}: {} outcomes", target.name, turns.outcomes());
    }
}

#[test]
fn what_was_found_stays_mended() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut n = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
        let Some(target) = TARGETS.into_iter().find(|target| target.name == name) else { continue };
        let mut turns = Loop::new(target, 1, 1 << 20, Duration::from_secs(30));
        check(turns.one(&std::fs::read(&path).unwrap()).map(drop), &path.display().to_string());
        n += 1;
    }
    eprintln!("{n} inputs");
}
