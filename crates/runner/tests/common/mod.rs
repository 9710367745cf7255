//! The built binary from the outside, and the smallest experiment.

#![allow(dead_code, reason = "no test uses all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The folder of the crates.
pub(crate) fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The tiny checkpoints.
pub(crate) fn models() -> PathBuf {
    crates().join("generation/tests/data/models")
}

/// The tiny network that scores are made with.
pub(crate) fn inception() -> PathBuf {
    crates().join("runner/tests/data/tiny-inception")
}

/// An experiment of 3 images a cell at a quarter and, for what is compared with it, at all of the training pixels: seconds. `methods` are a
/// list in YAML, which keys of one's own may follow.
pub(crate) fn tiny(methods: &str) -> String {
    format!(
        "models: {{tiny: {{path: {}, family: sd15}}}}\nmethods: {methods}\nscales: [0.25]\nimages: 3\nsampler: {{steps: 2}}\n\
         reference: {{source: emoji, images: 6}}\nmetrics: {{protocol: scalecrafter, extractor: {}}}\n",
        models().join("tiny-sd15").display(),
        inception().display(),
    )
}

pub(crate) fn scalebench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scalebench"));
    // Calibrations of dry runs go where the build goes, not into the user's cache.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    command.args(args).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1").env("XDG_CACHE_HOME", cache);
    command
}

/// The same in a folder.
pub(crate) fn scalebench_in(dir: &Path, args: &[&str]) -> Command {
    let mut command = scalebench(args);
    command.current_dir(dir);
    command
}

pub(crate) fn sweep(experiment: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = scalebench(&["sweep"]);
    command.arg(experiment).arg("--out").arg(out).args(more);
    command
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
pub(crate) fn succeed(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    output
}

/// Exit status 2 and an error that holds all fragments, in the last line on stderr.
#[track_caller]
pub(crate) fn fail(mut command: Command, fragments: &[&str]) -> Output {
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
    let last = said.lines().last().unwrap_or_default();
    for fragment in fragments {
        assert!(last.contains(fragment), "{command:?}: expected {fragment:?} in: {last}");
    }
    output
}
