//! Broken inputs of every kind against the built binary: each is one error that names the file and the key, exit status 2, in bounded
//! time and memory, and nothing is written that could be taken for whole.
//!
//! Everything is made by code from the smallest checkpoint, network and experiment of the tests.

mod arguments;
mod checkpoints;
mod experiments;
mod files;
mod runs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What the process may map, in KiB: the program itself, its threads, and a tiny network.
const ADDRESS_SPACE: u64 = 3 << 20;

/// Within which it must have ended, on a busy machine too.
const TIME: Duration = Duration::from_secs(60);

/// One broken input.
pub(crate) struct Case {
    pub(crate) args: Vec<String>,
    /// What the error names: the file, the key.
    pub(crate) names: Vec<String>,
    /// A file that must not be there afterwards, or a folder that holds nothing with a final name.
    pub(crate) out: Option<PathBuf>,
}

impl Case {
    pub(crate) fn new(args: &[&str], names: &[&str]) -> Case {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Case { args: owned(args), names: owned(names), out: None }
    }

    pub(crate) fn writes(self, out: &Path) -> Case {
        Case { out: Some(out.to_owned()), ..self }
    }
}

/// A place for files, and the inputs that cases are made from.
pub(crate) struct Bench {
    root: PathBuf,
    n: AtomicUsize,
}

impl Bench {
    /// A new folder.
    pub(crate) fn folder(&self) -> PathBuf {
        let folder = self.root.join(format!("{:04}", self.n.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    /// A new folder with one file.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let file = self.folder().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    }

    /// The tiny checkpoint, with weight files linked and configurations copied.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        let folder = self.folder().join("tiny");
        copy(&tiny(), &folder);
        folder
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false if entry.path().extension().is_some_and(|e| e == "safetensors") => {
                std::os::unix::fs::symlink(entry.path().canonicalize().unwrap(), to).unwrap();
            }
            false => assert!(std::fs::copy(entry.path(), to).is_ok()),
        }
    }
}

pub(crate) fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../generation/tests/data/models/tiny-sd15")
}

pub(crate) fn inception() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-inception")
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program with its address space limited.
pub(crate) fn run(args: &[String], cwd: &Path) -> (Output, Duration) {
    let start = Instant::now();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {ADDRESS_SPACE}; exec timeout -s KILL {} \"$0\" \"$@\"", TIME.as_secs())]);
    command.arg(env!("CARGO_BIN_EXE_scalebench")).args(args).current_dir(cwd).stdin(Stdio::null());
    command.env("HF_HUB_OFFLINE", "1").env("XDG_CACHE_HOME", cwd.join("cache")).env("RAYON_NUM_THREADS", "1");
    // Many have it set; libraries add their stack then.
    command.env("RUST_BACKTRACE", "1");
    (command.output().unwrap(), start.elapsed())
}

/// Files with final names under a path.
fn whole_files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return if path.exists() { vec![path.to_owned()] } else { Vec::new() };
    }
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'))
        .flat_map(|path| whole_files(&path))
        .filter(|path| path.file_name().unwrap() != "run.yaml")
        .collect()
}

/// What is wrong about how a case ended.
fn judge(case: &Case, output: &Output) -> Option<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    // What clap says of arguments has hints below the error.
    let is_of_arguments = stderr.contains("For more information, try '--help'");
    let others =
        stderr.lines().filter(|line| !line.starts_with("error: ") && !line.starts_with("warning: ") && !line.starts_with("note: "));
    if output.status.code() != Some(2) {
        return Some(format!("ended with {}", output.status));
    }
    let [error] = errors[..] else { return Some(format!("{} errors", errors.len())) };
    if !is_of_arguments && others.count() > 0 {
        return Some("more than one line".into());
    }
    if error.contains("out of memory") {
        return Some("asked for all memory".into());
    }
    let all = if is_of_arguments { &*stderr } else { error };
    if let Some(name) = case.names.iter().find(|name| !all.contains(name.as_str())) {
        return Some(format!("does not name {name:?}"));
    }
    let written = case.out.as_deref().map(whole_files).unwrap_or_default();
    if written.is_empty() { None } else { Some(format!("wrote {written:?}")) }
}

#[test]
fn every_broken_input_is_one_error_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench { root: dir.path().to_owned(), n: AtomicUsize::new(0) };
    let mut cases = arguments::cases(&bench);
    cases.extend(experiments::cases(&bench));
    cases.extend(checkpoints::cases(&bench));
    cases.extend(files::cases(&bench));
    cases.extend(runs::cases(&bench));
    assert!(cases.len() >= 300, "{} cases", cases.len());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (output, took) = run(&case.args, dir.path());
            let stderr = String::from_utf8_lossy(&output.stderr);
            if let Some(problem) = judge(case, &output) {
                let args = case.args.join(" ").replace(text(dir.path()), "…");
                failures.lock().unwrap().push(format!("{problem}: {args}\n    {}", stderr.trim().replace('\n', "\n    ")));
            } else if took >= TIME {
                failures.lock().unwrap().push(format!("took {took:?}: {:?}", case.args));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} cases ended badly:\n{}", failures.len(), cases.len(), failures.join("\n"));
    eprintln!("{} cases", cases.len());
}
