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
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // Symbols are a third of the program. Not `strip` in the profile: that is part of every crate's identity.
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
        if leaves_unwinding_out() {
            discard_unwinding_tables();
        }
        if links_with_lld() {
            // polars is compiled without optimisation and repeats itself: functions of equal code become one.
            println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        }
    }
}

/// Whether the profile is `dist`, which has `panic = "abort"`: cargo tells a build script neither, but the folder is the profile's.
fn leaves_unwinding_out() -> bool {
    let folder = std::env::var_os("OUT_DIR").unwrap_or_default();
    // target/dist/build/scalebench-0123456789abcdef/out
    Path::new(&folder).ancestors().nth(3).is_some_and(|profile| profile.ends_with("dist"))
}

/// The standard library is compiled with tables that say how to unwind it, two megabytes with those of C code; nothing reads them here.
fn discard_unwinding_tables() {
    let sections = "*(.eh_frame) *(.eh_frame.*) *(.gcc_except_table) *(.gcc_except_table.*)";
    let file = Path::new(&std::env::var_os("OUT_DIR").unwrap_or_default()).join("discard.ld");
    if std::fs::write(&file, format!("SECTIONS {{ /DISCARD/ : {{ {sections} }} }}\nINSERT AFTER .text;\n")).is_ok() {
        // Not behind `-Wl,`, where a comma in the path would part it.
        println!("cargo::rustc-link-arg-bins=-T{}", file.display());
    }
}

/// Whether the compiler brings its own linker, as it does for this target since 1.90, and nobody chose another one.
fn links_with_lld() -> bool {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let is_usual = is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu") && is("HOST", "x86_64-unknown-linux-gnu");
    let chosen = ["CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "RUSTC_LINKER"];
    let is_chosen =
        chosen.into_iter().any(|name| std::env::var(name).is_ok_and(|value| value.contains("link") || name.ends_with("LINKER")));
    let version = std::env::var("RUSTC").ok().and_then(|rustc| Command::new(rustc).arg("--version").output().ok());
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let minor = version.strip_prefix("rustc 1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    is_usual && !is_chosen && minor.is_some_and(|minor| minor >= 90)
}

/// The commit that is checked out, if this is a clone and git is there. A repository further up is another project's.
fn checked_out() -> Option<String> {
    let root = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR")?).join("../..");
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
