//! What happens to runs: files that change, processes that meet, signals, clocks, threads.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use common::{scalebench, stderr, succeed, sweep, tiny};

/// The smallest experiment, with a second method.
fn experiment(dir: &Path) -> PathBuf {
    let file = dir.join("tiny.yaml");
    std::fs::write(&file, tiny("[direct-inf, {method: direct-inf, label: few, set: {sampler.eta: 0}}]")).unwrap();
    file
}

/// Relative paths and contents of all files that a run consists of, but for what is measured.
fn files(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![run.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.contains(".tmp"), "left over: {}", path.display());
            if path.is_dir() {
                folders.push(path);
            } else if ["png", "csv", "jsonl", "safetensors", "json"].iter().any(|end| name.ends_with(end)) && !name.starts_with("timings") {
                found.insert(path.strip_prefix(run).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The run once more in another place.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        match path.is_dir() {
            true => copy(&path, &to),
            false => assert!(std::fs::copy(&path, &to).is_ok()),
        }
    }
}

fn verify(run: &Path) -> (Option<i32>, serde_json::Value) {
    let output = scalebench(&["verify", run.to_str().unwrap(), "--json"]).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output))))
}

/// Every file of a run, damaged in every way: `verify` names it, nothing is scored from it, and the same sweep makes it again.
#[test]
fn whatever_is_damaged_is_found_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (experiment, good) = (experiment(dir.path()), dir.path().join("good"));
    succeed(sweep(&experiment, &good, &[]));
    let whole = files(&good);
    let (status, found) = verify(&good);
    assert_eq!((status, found["wrong"].as_array().unwrap().len()), (Some(0), 0), "{found}");
    assert!(String::from_utf8_lossy(&succeed(scalebench(&["verify", good.to_str().unwrap()])).stdout).contains("whole;"));

    let ends = |end: &str| {
        whole.keys().filter(|path| path.to_string_lossy().ends_with(end) && !path.starts_with("report")).cloned().collect::<Vec<_>>()
    };
    let mut damaged: Vec<PathBuf> =
        vec!["run.yaml".into(), "results.csv".into(), "results.parquet".into(), "timings.csv".into(), "checksums.b3".into()];
    damaged.extend(ends("images/000001.png"));
    damaged.extend(ends("manifest.jsonl"));
    damaged.extend(ends("schedule.json"));
    damaged.extend(ends(".safetensors"));
    assert!(damaged.len() > 14, "{damaged:?}");
    for (i, file) in damaged.iter().enumerate() {
        let run = dir.path().join("damaged");
        let _ = std::fs::remove_dir_all(&run);
        copy(&good, &run);
        let path = run.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        match i % 3 {
            0 => {
                let at = bytes.len() * 2 / 3;
                bytes[at] ^= 1;
                std::fs::write(&path, &bytes).unwrap();
            }
            1 => std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
            _ => std::fs::remove_file(&path).unwrap(),
        }
        if file == Path::new("run.yaml") && i % 3 == 2 {
            continue;
        }
        let (status, found) = verify(&run);
        let named = found["wrong"].as_array().unwrap().iter().any(|wrong| wrong["file"] == file.to_str().unwrap());
        // A line that is cut off, or a digest that is another file's, is told by what it is of.
        assert!(status == Some(1) && (named || file == Path::new("checksums.b3")), "{}: {found}", file.display());
        let output = sweep(&experiment, &run, &[]).output().unwrap();
        if file == Path::new("run.yaml") {
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            assert!(stderr(&output).contains("run.yaml"), "{}", stderr(&output));
            continue;
        }
        if file == Path::new("checksums.b3") && output.status.code() == Some(2) {
            assert!(stderr(&output).contains("checksums.b3"), "{}", stderr(&output));
            continue;
        }
        assert!(output.status.success(), "{}: {}", file.display(), stderr(&output));
        assert!(files(&run) == whole, "{}: another run came out", file.display());
        assert_eq!(verify(&run).0, Some(0), "{}", file.display());
    }
}

/// An image of another run under the same name and key, whole in itself.
#[test]
fn another_image_under_the_same_key_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (experiment, run) = (experiment(dir.path()), dir.path().join("run"));
    succeed(sweep(&experiment, &run, &[]));
    let (whole, image) = (files(&run), run.join("cells/tiny/0.25x-direct-inf/images/000001.png"));
    // The same pixels in other bytes, as another encoder would write them, and the key after them.
    let mut bytes = std::fs::read(&image).unwrap();
    let end = bytes.len() - 12;
    bytes.splice(end..end, *b"\x00\x00\x00\x00teSt\x8f\x8f\x8f\x8f");
    std::fs::write(&image, &bytes).unwrap();
    let (status, found) = verify(&run);
    assert!(status == Some(1) && found.to_string().contains("000001.png"), "{found}");
    succeed(sweep(&experiment, &run, &[]));
    assert!(files(&run) == whole);
}

/// Of two sweeps in one directory one goes on, and the other says who has it; shards share it.
#[test]
fn two_sweeps_in_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (experiment, alone, both) = (experiment(dir.path()), dir.path().join("alone"), dir.path().join("both"));
    succeed(sweep(&experiment, &alone, &[]));
    let begin = |more: &[&str]| sweep(&experiment, &both, more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let children: Vec<Child> = (0..4).map(|_| begin(&[])).collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let n_done = outputs.iter().filter(|output| output.status.success()).count();
    assert!(n_done >= 1, "{:?}", outputs.iter().map(stderr).collect::<Vec<_>>());
    for refused in outputs.iter().filter(|output| !output.status.success()) {
        let text = stderr(refused);
        assert!(refused.status.code() == Some(2) && text.contains("at work on shard 0/1 of this run"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
    }
    assert!(files(&both) == files(&alone), "another run came out");

    std::fs::remove_dir_all(&both).unwrap();
    let children = [begin(&["--shard", "0/3"]), begin(&["--shard", "1/3"]), begin(&["--shard", "2/3"])];
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    succeed(sweep(&experiment, &both, &[]));
    assert!(files(&both) == files(&alone), "shards made another run");
    assert_eq!(verify(&both).0, Some(0));
}

/// SIGTERM lets the image in hand be finished; SIGINT and SIGHUP end at once. The same command goes on after any of them.
#[test]
fn signals_end_a_sweep_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (experiment, undisturbed) = (experiment(dir.path()), dir.path().join("undisturbed"));
    let slowly = ["--set", "sampler.steps=40"];
    succeed(sweep(&experiment, &undisturbed, &slowly));
    for (signal, status) in [("TERM", Some(75)), ("INT", None), ("HUP", None), ("KILL", None)] {
        let run = dir.path().join(signal);
        let mut child = sweep(&experiment, &run, &slowly).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !run.join("cells/tiny/1x-direct-inf/images/000000.png").exists() {
            assert!(child.try_wait().unwrap().is_none(), "ended early");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), status, "{signal}");
        assert!(!run.join("results.csv").exists(), "{signal} came too late");
        succeed(sweep(&experiment, &run, &slowly));
        assert!(files(&run) == files(&undisturbed), "{signal}: another run came out");
    }
}

/// Nothing is decided by the times of files: neither a clock set back nor one set forward changes what is made.
#[test]
fn clocks_may_be_set() {
    let dir = tempfile::tempdir().unwrap();
    let (experiment, run) = (experiment(dir.path()), dir.path().join("run"));
    succeed(sweep(&experiment, &run, &[]));
    let whole = files(&run);
    for time in [SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(400 * 24 * 3600)] {
        for file in whole.keys().chain([&PathBuf::from("run.yaml")]) {
            std::fs::File::options().write(true).open(run.join(file)).unwrap().set_modified(time).unwrap();
        }
        succeed(scalebench(&["status", run.to_str().unwrap()]));
        std::fs::remove_file(run.join("cells/tiny/0.25x-direct-inf/images/000002.png")).unwrap();
        std::fs::remove_file(run.join("results.csv")).unwrap();
        succeed(sweep(&experiment, &run, &[]));
        assert!(files(&run) == whole);
        assert_eq!(verify(&run).0, Some(0));
    }
}

/// Killed while the last night's run makes room for the next: its folder may be half gone, the new one half there.
#[test]
fn a_history_outlives_a_night_that_ends_while_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (experiment, history) = (experiment(dir.path()), dir.path().join("history"));
    let night = || {
        let mut command = scalebench(&["nightly", "--no-speed", "--no-memory"]);
        command.arg(&experiment).arg("--history").arg(&history);
        succeed(command);
    };
    night();
    let [latest, incoming, outgoing] = ["latest", "latest.incoming", "latest.outgoing"].map(|name| history.join(name));
    let results = std::fs::read(latest.join("results.csv")).unwrap();
    std::fs::rename(&latest, &outgoing).unwrap();
    std::fs::remove_file(outgoing.join("night.json")).unwrap();
    night();
    assert!(!outgoing.exists() && std::fs::read(latest.join("results.csv")).unwrap() == results);
    std::fs::remove_dir_all(&latest).unwrap();
    std::fs::create_dir(&incoming).unwrap();
    std::fs::write(incoming.join(".night.json.0of1.tmp"), "{\"da").unwrap();
    night();
    assert!(!incoming.exists() && std::fs::read(latest.join("results.csv")).unwrap() == results);
}

/// Images, features and results are the same to the last bit on any number of threads.
#[test]
fn threads_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path());
    let run = |threads: &str| {
        let out = dir.path().join(threads);
        let mut command = sweep(&experiment, &out, &["--set", "images=6", "--set", "reference.images=40"]);
        command.env("RAYON_NUM_THREADS", threads);
        succeed(command);
        files(&out)
    };
    let one = run("1");
    assert!(one.contains_key(Path::new("results.csv")));
    for threads in ["2", "4"] {
        let found = run(threads);
        let differing: Vec<&PathBuf> = one.iter().filter(|(file, bytes)| found.get(*file) != Some(*bytes)).map(|(file, _)| file).collect();
        assert!(differing.is_empty() && found.len() == one.len(), "{threads} threads: {differing:?}");
    }
}

/// Decompositions are cut among threads from some 300 values on; the network above has 64.
#[test]
fn threads_change_no_bit_of_scores_of_wide_features() {
    use scalebench_metrics::npz::{ArrayRef, Values, write};
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let sides = [900, 950].map(|n| {
        let (file, values) = (dir.path().join(format!("{n}.npz")), (0..400 * n).map(|_| uniform()).collect::<Vec<_>>());
        write(&file, &[("feats", ArrayRef { shape: &[n, 400], values: Values::F32(&values) })]).unwrap();
        file
    });
    let score = |threads: &str| {
        let mut command = scalebench(&["score", "--metrics", "fid", "--json"]);
        command.arg("--real").arg(&sides[0]).arg("--fake").arg(&sides[1]).env("RAYON_NUM_THREADS", threads);
        String::from_utf8(succeed(command).stdout).unwrap()
    };
    let one = score("1");
    assert!(one.contains("\"fid\""), "{one}");
    assert_eq!([score("2"), score("4")], [one.clone(), one]);
}

/// In a network namespace without interfaces, where the system lets one have that: nothing but the hub is ever asked.
#[test]
fn a_sweep_needs_no_network() {
    let alone = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).args(args).stdin(Stdio::null());
        command
    };
    if !alone(&["true"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("not run: no network namespaces here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (experiment, run) = (experiment(dir.path()), dir.path().join("run"));
    let out = run.to_str().unwrap();
    succeed(alone(&[env!("CARGO_BIN_EXE_scalebench"), "sweep", experiment.to_str().unwrap(), "--out", out]));
    assert_eq!(verify(&run).0, Some(0));
}

/// A place that cannot be written to, and one that is full.
#[test]
fn a_place_that_cannot_be_written_to_is_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path());
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let output = sweep(&experiment, &file.join("run"), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("file/run") && stderr(&output).lines().count() == 1, "{}", stderr(&output));
    // What is said of a full disk, where the device for it exists.
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        let output = scalebench(&["methods"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(
            stderr(&output).starts_with("error: cannot write to stdout") && stderr(&output).lines().count() == 1,
            "{}",
            stderr(&output)
        );
    }
}
