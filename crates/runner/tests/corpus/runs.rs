//! Run directories that are none, or that something happened to.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Bench, Case, inception, text, tiny};

/// A finished run of nine images, and its experiment.
fn finished(bench: &Bench) -> (PathBuf, PathBuf) {
    let experiment = bench.file(
        "good.yaml",
        format!(
            "models: {{tiny: {{path: {}, family: sd15}}}}\nmethods: [direct-inf]\nscales: [0.25]\nimages: 3\nsampler: {{steps: 1}}\n\
             reference: {{source: emoji, images: 6}}\nmetrics: {{protocol: scalecrafter, extractor: {}}}\n",
            tiny().display(),
            inception().display()
        ),
    );
    let run = bench.folder().join("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_scalebench"));
    command.args(["sweep", text(&experiment), "--out", text(&run)]).env("HF_HUB_OFFLINE", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (run, experiment)
}

/// The path of some file under a folder whose name ends so.
fn ending(folder: &Path, end: &str) -> PathBuf {
    fn walk(folder: &Path, end: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, end, found);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, end, &mut found);
    found.sort();
    found.remove(0)
}

pub(crate) fn cases(bench: &Bench) -> Vec<Case> {
    let (run, experiment) = finished(bench);
    let changed = |file: &str, change: &dyn Fn(&mut Vec<u8>)| -> PathBuf {
        let copy = bench.folder().join("run");
        crate::copy(&run, &copy);
        let path = ending(&copy, file);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        // What is linked to belongs to the finished run.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        copy
    };
    let flip = |bytes: &mut Vec<u8>| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
    };
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    let clear = |bytes: &mut Vec<u8>| bytes.clear();
    let mut cases = Vec::new();
    let mut check = |run: PathBuf, commands: &[&str], names: &[&str]| {
        for command in commands {
            let args = match *command {
                "compare" => vec!["compare", text(&run), text(&run)],
                "sweep" => vec!["sweep", text(&experiment), "--out", text(&run)],
                _ => vec![*command, text(&run)],
            };
            cases.push(Case::new(&args, names));
        }
    };
    for change in [&flip as &dyn Fn(&mut Vec<u8>), &cut, &clear] {
        check(changed("run.yaml", change), &["report", "compare", "results", "status", "sweep"], &["run.yaml"]);
        check(changed("results.parquet", change), &["report", "results"], &["results.parquet"]);
        check(changed("0.25x-direct-inf/manifest.jsonl", change), &["report", "compare"], &["manifest.jsonl"]);
        check(changed("schedule.json", change), &["report"], &["schedule.json"]);
        check(changed("0.25x-direct-inf/images/000000.png", change), &["report"], &["image 0"]);
        // Either side of a comparison.
        for (i, file) in features(&run).iter().enumerate() {
            let name = file.file_name().unwrap().to_str().unwrap();
            if i < 4 {
                check(changed(name, change), &["compare"], &[name]);
            }
        }
    }
    for text in ["", "[]", "command: x", "a: [", "command: x\nexperiment: {}\n"] {
        let folder = bench.file("run.yaml", text).parent().unwrap().to_owned();
        check(folder, &["report", "compare", "results", "status", "sweep"], &["run.yaml"]);
    }
    check(bench.folder(), &["report", "compare", "results", "status"], &["run.yaml"]);
    cases
}

fn features(run: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(run.join("features")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
