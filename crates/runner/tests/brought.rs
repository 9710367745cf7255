//! Images of another program in the same table: the built binary, from the outside.

mod common;

use std::path::Path;

use common::{crates, scalebench_in, stderr, stdout, tiny};

/// The smallest experiment of these methods.
fn write_experiment(dir: &Path, name: &str, methods: &str) -> String {
    std::fs::write(dir.join(name), tiny(methods)).unwrap();
    name.to_owned()
}

/// What it said on stdout and stderr.
#[track_caller]
fn succeed(dir: &Path, args: &[&str]) -> (String, String) {
    let output = common::succeed(scalebench_in(dir, args));
    (stdout(&output), stderr(&output))
}

#[track_caller]
fn fail(dir: &Path, args: &[&str], fragments: &[&str]) {
    common::fail(scalebench_in(dir, args), fragments);
}

/// A CSV file as a map of each row, by header.
fn table(path: &Path) -> Vec<std::collections::BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().unwrap();
    lines.map(|line| header.iter().cloned().zip(line).collect()).collect()
}

const MINE: &str = "[direct-inf, {images: 'mine/{scale}x/{index:02}.png', name: mine, title: Their method, source: them}]";

#[test]
fn a_copy_of_our_images_has_our_scores_and_a_difference_of_zero() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let file = write_experiment(dir, "own.yaml", MINE);
    let (_, said) = succeed(dir, &["jobs", &file, "--out", "jobs.csv"]);
    assert!(said.contains("9 images in jobs.csv"), "{said}");
    let jobs = table(&dir.join("jobs.csv"));
    let mine: Vec<_> = jobs.iter().filter(|job| job["method"] == "mine").collect();
    let files: Vec<&str> = mine.iter().map(|job| job["file"].as_str()).collect();
    assert_eq!(files, ["0.25x/00.png", "0.25x/01.png", "0.25x/02.png"]);
    assert_eq!(mine.iter().map(|job| job["seed"].as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
    assert!(jobs.iter().any(|job| job["cell"] == "tiny/1x-direct-inf" && job["width"] == job["base_width"]));
    assert!(
        mine.iter().all(|job| job["steps"] == "2" && job["sampler"] == "ddim" && job["eta"] == "1.0" && job["guidance_scale"] == "7.5")
    );
    let (printed, _) = succeed(dir, &["jobs", &file]);
    assert_eq!(printed, std::fs::read_to_string(dir.join("jobs.csv")).unwrap());
    succeed(dir, &["jobs", &file, "--out", "jobs.jsonl"]);
    let lines = std::fs::read_to_string(dir.join("jobs.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((lines.lines().count(), first["prompt"].as_str()), (9, Some(jobs[0]["prompt"].as_str())));
    succeed(dir, &["jobs", &file, "--out", "jobs.parquet"]);
    assert_eq!(std::fs::read(dir.join("jobs.parquet")).unwrap()[..4], *b"PAR1");
    fail(dir, &["jobs", &file, "--out", "jobs.txt"], &["jobs.txt", ".csv, .parquet or .jsonl"]);

    fail(dir, &["sweep", &file, "--out", "run"], &["cell tiny/0.25x-mine", "expected 3 images, found none", "mine/0.25x/00.png"]);
    // The baseline alone makes what "they" will have made.
    let baseline = write_experiment(dir, "baseline.yaml", "[direct-inf]");
    succeed(dir, &["sweep", &baseline, "--out", "baseline"]);
    std::fs::create_dir_all(dir.join("mine/0.25x")).unwrap();
    let ours = |i: usize| dir.join(format!("baseline/cells/tiny/0.25x-direct-inf/images/{i:06}.png"));
    for i in 0..3 {
        std::fs::copy(ours(i), dir.join(format!("mine/0.25x/{i:02}.png"))).unwrap();
    }
    std::fs::write(dir.join("mine/timings.csv"), "file,seconds\n0.25x/00.png,3\n0.25x/01.png,4\n0.25x/02.png,5\n").unwrap();
    succeed(dir, &["sweep", &file, "--out", "run"]);
    let rows = table(&dir.join("run/results.csv"));
    assert_eq!(rows.iter().map(|row| row["method"].as_str()).collect::<Vec<_>>(), ["direct-inf", "mine"]);
    for column in ["fid_r", "fid_r_lo", "kid_r", "fid_b", "kid_b"] {
        assert_eq!(rows[0][column], rows[1][column], "{column}");
    }
    for column in ["d_fid_r", "d_kid_r", "d_fid_b", "d_kid_b"] {
        assert_eq!(rows[1][column].parse::<f64>().unwrap(), 0.0, "{column}");
    }
    assert_eq!(table(&dir.join("run/timings.csv"))[1]["seconds_per_image"], "4.0");
    let manifest = std::fs::read_to_string(dir.join("run/cells/tiny/0.25x-mine/manifest.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(manifest.lines().nth(1).unwrap()).unwrap();
    assert_eq!(line["brought"].as_str().unwrap(), blake3::hash(&std::fs::read(dir.join("mine/0.25x/01.png")).unwrap()).to_string());
    let page = std::fs::read_to_string(dir.join("run/report/index.html")).unwrap();
    assert!(page.contains("Their method"));
    let (status, _) = succeed(dir, &["status", "run"]);
    assert!(status.contains("tiny/0.25x-mine"), "{status}");
    let (costs, _) = succeed(dir, &["sweep", &file, "--out", "run", "--dry-run"]);
    assert!(costs.contains("tiny/0.25x-mine"), "{costs}");
    succeed(dir, &["compare", "run", "run"]);

    // Other images under the same names: the run is of the new ones, and ours are not made again.
    let before = std::fs::metadata(dir.join("run/cells/tiny/0.25x-direct-inf/images/000000.png")).unwrap().modified().unwrap();
    succeed(dir, &["sweep", &baseline, "--out", "seed9", "--set", "seed=9"]);
    std::fs::copy(dir.join("seed9/cells/tiny/0.25x-direct-inf/images/000000.png"), dir.join("mine/0.25x/02.png")).unwrap();
    let (_, said) = succeed(dir, &["sweep", &file, "--out", "run"]);
    assert!(said.contains("images of another program have changed"), "{said}");
    let rows = table(&dir.join("run/results.csv"));
    assert_ne!(rows[0]["fid_r"], rows[1]["fid_r"]);
    let after = std::fs::metadata(dir.join("run/cells/tiny/0.25x-direct-inf/images/000000.png")).unwrap().modified().unwrap();
    assert_eq!(before, after);
}

#[test]
fn results_join_runs_of_one_protocol_and_no_others() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let file = write_experiment(dir, "a.yaml", "[direct-inf]");
    succeed(dir, &["sweep", &file, "--out", "one"]);
    succeed(dir, &["sweep", &file, "--out", "two", "--set", "seed=7"]);
    let protocol = "name: other\ntitle: Another\nsource: this test\ncompare:\n  - {id: r, against: reference, metrics: [fid]}\n";
    std::fs::write(dir.join("other.yaml"), protocol).unwrap();
    succeed(dir, &["sweep", &file, "--out", "other", "--set", "metrics.protocol=other.yaml"]);
    let (csv, _) = succeed(dir, &["results", "one", "two", "--format", "csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert!(
        lines.len() == 3 && lines[0].starts_with("run,model,scale,") && lines[1].starts_with("one,tiny,") && lines[2].starts_with("two,")
    );
    let (json, _) = succeed(dir, &["results", "one", "two", "--format", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let value: f64 = lines[1].split(',').nth(9).unwrap().parse().unwrap();
    assert_eq!((rows[0]["fid_r"].as_f64(), rows[1]["run"].as_str()), (Some(value), Some("two")));
    let (markdown, _) = succeed(dir, &["results", "one", "two"]);
    assert!(markdown.contains("| direct-inf (one) |") && markdown.contains("| direct-inf (two) |"), "{markdown}");
    assert!(markdown.contains("not comparable with published FID"), "{markdown}");
    let (latex, _) = succeed(dir, &["results", "one", "--format", "latex"]);
    assert!(latex.contains("\\begin{tabular}") && !latex.contains("(one)"), "{latex}");
    fail(dir, &["results", "one", "other"], &["one and other", "measure different things", "metrics.protocol"]);
    fail(dir, &["results", "one", "none"], &["none/run.yaml"]);
}

#[test]
fn a_built_in_experiment_runs_in_an_empty_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    fail(dir, &["sweep", "quik"], &["quik", "expected an experiment file or one of", "did you mean `quick`?"]);
    let small = [
        "--set",
        "images=3",
        "--set",
        "sampler.steps=1",
        "--set",
        "scales=[1]",
        "--set",
        "reference.images=4",
        "--set",
        "methods=[direct-inf]",
    ];
    succeed(dir, &[&["sweep", "quick"][..], &small].concat());
    let described = std::fs::read_to_string(dir.join("runs/quick/run.yaml")).unwrap();
    assert!(described.contains("path: scalebench:datasets/pocket\n"), "{described}");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1, "nothing but runs/ is written here");
    std::fs::write(dir.join("mine.yaml"), "base: quick\nimages: 3\nmethods: [direct-inf, {images: 'm/{index}.png', name: mine}]\n")
        .unwrap();
    let (jobs, _) = succeed(dir, &["jobs", "mine.yaml"]);
    assert_eq!(jobs.lines().count(), 1 + 3 * (1 + 2 * 2), "{jobs}");
    succeed(dir, &["unpack", "data"]);
    assert_eq!(
        std::fs::read(dir.join("data/datasets/pocket/unet/diffusion_pytorch_model.safetensors")).unwrap(),
        std::fs::read(crates().join("../datasets/pocket/unet/diffusion_pytorch_model.safetensors")).unwrap()
    );
}
