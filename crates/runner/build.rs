//! Tells the program its version and the commit that it is built from: `$SCALEBENCH_COMMIT`, else what git has checked out.

#![allow(clippy::print_stdout, reason = "a build script talks to cargo on stdout")]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SCALEBENCH_COMMIT");
    let given = std::env::var("SCALEBENCH_COMMIT").ok().map(|commit| commit.trim().to_owned());
    let commit = given.filter(|commit| !commit.is_empty()).or_else(checked_out).unwrap_or_default();
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    if !commit.is_empty() {
        version += &format!(" ({})", commit.chars().take(12).collect::<String>());
    }
    println!("cargo::rustc-env=SCALEBENCH_COMMIT={commit}");
    println!("cargo::rustc-env=SCALEBENCH_VERSION={version}");
}

/// The commit that is checked out, if this is a clone and git is there. A repository further up is another project's.
fn checked_out() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !root.join(".git").exists() {
        return None;
    }
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").arg("-C").arg(&root).args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // One of the two changes with every commit and checkout. A file that is not there would run this script on every build.
    for name in ["HEAD", "logs/HEAD"] {
        let file = git(&["rev-parse", "--git-path", name]).map(|path| root.join(path)).filter(|file| file.exists());
        if let Some(file) = file {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    git(&["rev-parse", "--verify", "HEAD"])
}
