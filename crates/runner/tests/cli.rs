//! The built binary, from the outside: exit status, messages, files.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{crates, fail, scalebench, stderr, succeed, sweep, tiny};

const HEADER: &str = "model,scale,width,height,method,protocol,n_images,n_reference,\
    fid_r,fid_r_lo,fid_r_hi,kid_r,kid_r_lo,kid_r_hi,fid_b,fid_b_lo,fid_b_hi,kid_b,kid_b_lo,kid_b_hi,\
    d_fid_r,d_fid_r_lo,d_fid_r_hi,d_fid_r_verdict,d_fid_r_n_to_decide,fid_r_standing,\
    d_kid_r,d_kid_r_lo,d_kid_r_hi,d_kid_r_verdict,d_kid_r_n_to_decide,kid_r_standing,\
    d_fid_b,d_fid_b_lo,d_fid_b_hi,d_fid_b_verdict,d_fid_b_n_to_decide,fid_b_standing,\
    d_kid_b,d_kid_b_lo,d_kid_b_hi,d_kid_b_verdict,d_kid_b_n_to_decide,kid_b_standing,\
    published_fid_r,published_kid_r,published_fid_b,published_kid_b,unet_flops_per_image";

/// The smallest experiment, with a second method.
fn write_experiment(dir: &Path) -> PathBuf {
    let direct = std::fs::read_to_string(crates().join("../experiments/methods/direct-inf.yaml")).unwrap();
    let other = direct.replace("name: direct-inf", "name: other");
    assert_ne!(direct, other);
    std::fs::write(dir.join("other.yaml"), other).unwrap();
    let file = dir.join("tiny.yaml");
    std::fs::write(&file, tiny("[direct-inf, other.yaml]\nquestion: Does it run? <b>&</b>")).unwrap();
    file
}

/// Exit status 2, one line on stderr that holds all fragments, and nothing on stdout.
#[track_caller]
fn check_failure(command: Command, fragments: &[&str]) {
    let output = fail(command, fragments);
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

/// Relative paths and contents of what must not depend on how a run went.
fn compared_files(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.contains(".tmp"), "left over: {}", path.display());
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".png") || name == "results.csv" || name == "manifest.jsonl" {
                found.push((path.strip_prefix(out).unwrap().to_owned(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Number of the images that have their final name.
fn images(out: &Path) -> usize {
    let folders = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let cells = folders(out.join("cells")).flat_map(folders);
    let files = cells.flat_map(|cell| folders(cell.join("images")));
    files.filter(|file| !file.file_name().unwrap().to_string_lossy().starts_with('.')).count()
}

#[test]
fn bad_input_is_one_line_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    let out = dir.path().join("out");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("metods=[]", &["tiny.yaml", "unknown field `metods`", "did you mean `methods`?"]),
        ("metrics.protocol=scalecraft", &["tiny.yaml: metrics.protocol", "did you mean `scalecrafter`?"]),
        ("methods=[scalecrafer]", &["tiny.yaml: methods", "`scalecrafer`", "did you mean `scalecrafter`?"]),
        ("methods=[missing.yaml]", &["tiny.yaml: methods", "missing.yaml"]),
        ("models.tiny.path=nowhere", &["tiny.yaml: models.tiny.path", "nowhere"]),
        ("models.tiny=org/not-cached", &["tiny.yaml: models.tiny.path", "org/not-cached", "huggingface-cli download"]),
        ("models.tiny.dtype=f8", &["tiny.yaml: models.tiny.dtype", "expected one of `f32`, `bf16`, `f16`"]),
        ("models={unknown: {}}", &["tiny.yaml: models.unknown.path", "expected the path of a checkpoint"]),
        ("sampler.eta=2", &["tiny.yaml", "`eta` is 2", "from 0 to 1"]),
        ("sampler={name: euler, eta: 1}", &["tiny.yaml", "`eta` is 1", "0 for any other sampler"]),
        ("sampler={name: ddim, use_karras_sigmas: true}", &["tiny.yaml", "`use_karras_sigmas` is true", "dpm++2m"]),
        ("scales=[0.2]", &["tiny.yaml", "scales", "expected whole pixels"]),
        ("scales=[{factor: 8, width: 4, height: 4}]", &["tiny.yaml: scales", "not factor 8"]),
        ("scales=[{factor: 1.015625, width: 1.015625, height: 1}]", &["tiny.yaml", "width", "260", "factor 8"]),
        ("scales=[]", &["tiny.yaml: scales", "at least one"]),
        ("images=2", &["tiny.yaml: images", "at least 3", "found 2"]),
        ("images=many", &["tiny.yaml: images", "expected a number of images, or a map from every scale to one"]),
        ("sampler.name=dimm", &["tiny.yaml: sampler.name", "dimm"]),
        ("reference={folder: empty}", &["tiny.yaml: reference", "empty"]),
        ("reference={source: emoji, images: 1}", &["tiny.yaml: reference", "at least 2"]),
        ("prompts={file: none.txt}", &["tiny.yaml: prompts", "none.txt"]),
        ("metrics.extractor=nowhere", &["tiny.yaml: metrics.extractor", "nowhere"]),
        ("metrics={protocol: pocket}", &["tiny.yaml: metrics.extractor", "expected the path of Inception"]),
        ("matrix={methods.othr.redilation.tau: [1]}", &["tiny.yaml: matrix.methods.othr", "did you mean `other`?"]),
        ("matrix={sampler.stps: [1]}", &["tiny.yaml: sampler", "unknown field `stps`", "did you mean `steps`?"]),
        ("matrix={sampler.eta: [0, 2]}", &["tiny.yaml", "`eta` is 2"]),
        ("matrix={methods.other.redilation.tau: [10]}", &["tiny.yaml: methods", "no variant of other has `redilation`"]),
        ("methods=[{method: direct-inf, label: a/b, set: {sampler.eta: 0}}]", &["tiny.yaml: methods", "`direct-inf_a/b`", "letters"]),
        ("methods=[{method: scalecrafter, set: {noise_damped_guidance.tau: 9}}]", &["tiny.yaml", "no variant for model `sd15` at 0.25"]),
    ];
    for (overrides, fragments) in cases {
        check_failure(sweep(&experiment, &out, &["--set", overrides]), fragments);
    }
    check_failure(sweep(&dir.path().join("no.yaml"), &out, &[]), &["cannot read", "no.yaml"]);
    std::fs::write(dir.path().join("broken.yaml"), "images: [3\n").unwrap();
    check_failure(sweep(&dir.path().join("broken.yaml"), &out, &[]), &["broken.yaml", "line"]);
    check_failure(scalebench(&["report", dir.path().to_str().unwrap()]), &["run.yaml", "expected"]);
    assert!(!out.exists(), "nothing may be written");
    assert_eq!(scalebench(&["sweep", "--shard", "3/3", "x.yaml"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn interrupted_and_sharded_sweeps_equal_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    let [whole, killed, sharded] = ["whole", "killed", "sharded"].map(|name| dir.path().join(name));

    let dry = succeed(sweep(&experiment, &whole, &["--dry-run"]));
    let dry = String::from_utf8(dry.stdout).unwrap();
    assert!(dry.contains("tiny/0.25x-other") && dry.contains("9 images, 0 done, 9 to make"), "{dry}");
    assert!(!whole.exists(), "a dry run writes nothing");

    let output = succeed(sweep(&experiment, &whole, &[]));
    assert!(String::from_utf8(output.stdout).unwrap().contains("not comparable with published FID"));
    let expected = compared_files(&whole);
    let csv = std::fs::read_to_string(whole.join("results.csv")).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], HEADER);
    assert_eq!(lines.len(), 3);
    assert!(lines[1].starts_with("tiny,0.25,128,128,direct-inf,scalecrafter,3,6,") && lines[2].contains(",other,"), "{csv}");
    assert!(csv.contains(",0.0,0.0,0.0,"), "equal images have no paired difference: {csv}");
    for file in ["results.parquet", "timings.csv", "report/fid_r.svg", "report/grid-tiny-0.25x.png", "report/table.md", "report/table.tex"]
    {
        assert!(whole.join(file).is_file(), "{file}");
    }
    let html = std::fs::read_to_string(whole.join("report/index.html")).unwrap();
    assert!(html.contains("Does it run? &lt;b&gt;&amp;&lt;/b&gt;") && !html.contains("<b>&</b>"));

    // Killed once an image is there; then a torn image, one under a wrong key, and a leftover.
    let mut child = sweep(&experiment, &killed, &[]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let first = killed.join("cells/tiny/1x-direct-inf/images/000000.png");
    while !first.exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let bytes = std::fs::read(&first).unwrap();
    std::fs::write(&first, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(killed.join("cells/tiny/1x-direct-inf/images/000001.png"), &bytes).unwrap();
    std::fs::write(killed.join("cells/tiny/1x-direct-inf/images/.000002.png.0of1.tmp"), b"half").unwrap();
    check_failure(sweep(&experiment, &killed, &["--set", "sampler.steps=3"]), &["run.yaml", "sampler.steps is 2 there and 3 here"]);
    succeed(sweep(&experiment, &killed, &[]));
    assert!(compared_files(&killed) == expected, "a resumed run differs");

    succeed(sweep(&experiment, &sharded, &["--shard", "1/2"]));
    assert!(!sharded.join("results.csv").exists(), "no results of half the images");
    succeed(sweep(&experiment, &sharded, &["--shard", "0/2"]));
    assert!(compared_files(&sharded) == expected, "a sharded run differs");

    // A rebuilt report is the same report.
    std::fs::remove_dir_all(killed.join("report")).unwrap();
    succeed(scalebench(&["report", killed.to_str().unwrap()]));
    assert!(compared_files(&killed) == expected, "a rebuilt report differs");
}

/// Images made together, by --batch-size, or beside each other, one on each thread, are the files that single ones are; a batch is
/// asked for by a number from 1.
#[test]
fn images_are_the_same_however_they_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    let make = |name: &str, threads: &str, options: &[&str]| {
        let out = dir.path().join(name);
        let mut command = sweep(&experiment, &out, &[&["--images-only"], options].concat());
        command.env("RAYON_NUM_THREADS", threads);
        succeed(command);
        // Every image has its time, whoever made it.
        for cell in ["1x-direct-inf", "0.25x-direct-inf", "0.25x-other"] {
            let timings = std::fs::read_to_string(out.join("cells/tiny").join(cell).join("timings.jsonl")).unwrap();
            let mut indices: Vec<u64> = Vec::new();
            for line in timings.lines() {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(line["seconds"].as_f64().unwrap() > 0.0 && line["processor_seconds"].as_f64().unwrap() > 0.0, "{line}");
                indices.push(line["index"].as_u64().unwrap());
            }
            indices.sort_unstable();
            assert_eq!(indices, [0, 1, 2], "{name}: {cell}");
        }
        compared_files(&out)
    };
    let alone = make("alone", "1", &[]);
    assert_eq!(alone.len(), 12, "nine images and three manifests");
    assert_eq!(make("together", "2", &["--batch-size", "2", "--device", "cpu"]), alone);
    // Two of the three beside each other, and one on both threads; all three; all three beside a thread that has none.
    for threads in ["2", "3", "4"] {
        assert_eq!(make(threads, threads, &[]), alone, "{threads} threads");
    }
    let alone = dir.path().join("alone");
    assert_eq!(sweep(&experiment, &alone, &["--batch-size", "0"]).output().unwrap().status.code(), Some(2));
}

/// A build without CUDA says what it lacks, and nothing is begun.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (experiment, out) = (write_experiment(dir.path()), dir.path().join("out"));
    for device in ["cuda", "cuda:3", "cuda:all"] {
        check_failure(sweep(&experiment, &out, &["--device", device]), &["--device", "--features cuda"]);
    }
    assert!(!out.exists());
    let args = ["features", "--images", "x", "--extractor", "y", "--out", "z.npz", "--device", "cuda"];
    check_failure(scalebench(&args), &["--device", "--features cuda"]);
    assert_eq!(scalebench(&["bench", "vae", "--config", "x.json", "--device", "gpu"]).output().unwrap().status.code(), Some(2));
    // A job script is written where there may be no GPU.
    let written = succeed(scalebench(&["submit", experiment.to_str().unwrap(), "--array", "2", "--device", "cuda", "--dry-run"]));
    assert!(String::from_utf8_lossy(&written.stdout).contains("--device cuda:0"));
}

/// `sbatch` and `scontrol` that write down what they are asked, and a `squeue` that knows which job was cancelled. The test is the
/// controller.
fn stand_ins(bin: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(bin).unwrap();
    let sbatch = "[ \"$1\" = --version ] && exit\n\
        [ ! -e \"${0%/*}/closed\" ] || { echo 'no more jobs' >&2; exit 1; }\n\
        echo \"$*\" >>\"$0.asked\"\n\
        echo \"$((40 + $(wc -l <\"$0.asked\")));cluster\"\n";
    let squeue = "[ \"$1 $3\" = '--noheader --format=%T' ] || exit 1\n\
        [ -e \"${0%/*}/cancelled ${2#--jobs=}\" ] && echo COMPLETING || echo RUNNING\n";
    for (name, body) in [("sbatch", sbatch), ("scontrol", "echo \"$*\" >>\"$0.asked\"\n"), ("squeue", squeue)] {
        let file = bin.join(name);
        std::fs::write(&file, format!("#!/bin/bash\n{body}")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// The events of `--log json`, which every line must be.
fn events(stderr: &[u8]) -> Vec<serde_json::Value> {
    let text = String::from_utf8(stderr.to_vec()).unwrap();
    let event = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) };
    text.lines().map(event).collect()
}

/// What a whole sweep of the tiny experiment says as JSON, against what it wrote.
fn check_log(events: &[serde_json::Value], run: &Path) {
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    assert!(events.iter().all(|event| event["time"].as_str().unwrap().ends_with('Z')), "{events:?}");
    assert_eq!((named("started").len(), named("image").len(), named("cell").len(), named("scores").len()), (1, 9, 3, 2), "{events:?}");
    let last = events.last().unwrap();
    assert!(last["event"] == "finished" && Path::new(last["report"].as_str().unwrap()).is_file(), "{last}");
    let csv = std::fs::read_to_string(run.join("results.csv")).unwrap();
    let fid: f64 = csv.lines().nth(1).unwrap().split(',').nth(8).unwrap().parse().unwrap();
    let said = named("scores")[0]["scores"]["fid_r"]["value"].as_f64().unwrap();
    assert!((said / fid - 1.0).abs() < 1e-12, "{said} {csv}");
}

/// The scripts that `submit` hands over, run as Slurm would: two tasks of which one is told to stop and one is killed, both
/// once more, and the merge.
#[test]
fn a_cluster_makes_what_one_process_makes() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("it's $HOME");
    std::fs::create_dir(&here).unwrap();
    write_experiment(&here);
    let bin = dir.path().join("bin");
    stand_ins(&bin);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let question = "question=Is \"it\" `$0` quoted\\?";
    // So that a signal arrives before the last image, on a busy machine too.
    let slowly = "sampler.steps=40";
    let submit_from = |path: &str, array: &str, out: &str, more: &[&str]| {
        let mut command = scalebench(&["submit", "tiny.yaml", "--array", array, "--out", out, "--set", question, "--set", slowly]);
        command.args(more).current_dir(&here).env("PATH", path);
        command
    };
    let submit = |more: &[&str]| submit_from(&path, "2", "the run", more);
    let asked = |program: &str| std::fs::read_to_string(bin.join(format!("{program}.asked"))).unwrap_or_default();
    let run = here.join("the run");

    check_failure(submit_from(dir.path().to_str().unwrap(), "2", "the run", &[]), &["sbatch: not found on PATH"]);
    check_failure(submit_from(&path, "4", "the run", &[]), &["--array: expected 1 to 3", "found 4"]);
    check_failure(submit(&["--mem", "8\"G"]), &["--mem: expected a value as sbatch takes it"]);
    check_failure(submit(&["--set", "images=many"]), &["tiny.yaml: images"]);
    std::fs::write(bin.join("closed"), "").unwrap();
    check_failure(submit_from(&path, "2", "other", &[]), &["sbatch: exit status: 1: no more jobs"]);
    std::fs::remove_file(bin.join("closed")).unwrap();
    let options = ["--engine", "slurm", "--partition", "p 1", "--gpus", "1", "--cpus-per-task", "2", "--mem", "1G", "--time", "1:00"];
    let dry = String::from_utf8(succeed(submit(&[&options[..], &["--dry-run"]].concat())).stdout).unwrap();
    assert!(!run.exists() && asked("sbatch").is_empty(), "a dry run does nothing");

    let printed = String::from_utf8(succeed(submit(&options)).stdout).unwrap();
    assert_eq!(printed, "shards: job 41, tasks 0 to 1\nmerge: job 42\n");
    let [shards, merge] = ["shards", "merge"].map(|name| run.join(format!("slurm/{name}.sbatch")));
    let expected = format!("--parsable {}\n--parsable --dependency=afterok:41 {}\n", shards.display(), merge.display());
    assert_eq!(asked("sbatch"), expected);
    let [shards_text, merge_text] = [&shards, &merge].map(|file| std::fs::read_to_string(file).unwrap());
    assert!(dry.contains(&shards_text) && dry.contains(&merge_text));
    for directive in ["array=\"0-1\"", "requeue", "signal=\"B:TERM@60\"", "partition=\"p 1\"", "cpus-per-task=\"2\"", "time=\"1:00\""] {
        assert!(shards_text.contains(&format!("#SBATCH --{directive}\n")), "{directive}: {shards_text}");
    }
    assert!(!merge_text.contains("--array") && !merge_text.contains("--shard"), "{merge_text}");

    let job = |script: &Path, job: &str, task: Option<&str>| {
        let mut command = Command::new("bash");
        command.arg(script).current_dir("/").env("PATH", &path).env("SLURM_JOB_ID", job).stdin(Stdio::null());
        command.envs(task.map(|task| ("SLURM_ARRAY_TASK_ID", task)));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        command
    };
    let count = || images(&run);
    let interrupt = |task: &str, signal: &str, group: bool| {
        let before = count();
        let mut child = job(&shards, &format!("5{task}"), Some(task)).spawn().unwrap();
        while count() == before {
            assert!(child.try_wait().unwrap().is_none(), "ended early");
            std::thread::sleep(Duration::from_millis(2));
        }
        let target = format!("{}{}", if group { "-" } else { "" }, child.id());
        assert!(Command::new("kill").args(["-s", signal, "--", &target]).status().unwrap().success());
        child.wait_with_output().unwrap()
    };
    let told = interrupt("0", "TERM", false);
    let stderr = String::from_utf8_lossy(&told.stderr).into_owned();
    assert_eq!(told.status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("stopped: told to stop by SIGTERM"), "{stderr}");
    assert_eq!(asked("scontrol"), "requeue 50\n");
    // A cancelled job is told to stop, too, and must not come back.
    std::fs::write(bin.join("cancelled 51"), "").unwrap();
    assert_eq!(interrupt("1", "TERM", false).status.code(), Some(75));
    assert_eq!(asked("scontrol"), "requeue 50\n");
    let leftovers = std::fs::read_dir(run.join("cells/tiny/1x-direct-inf/images")).unwrap();
    assert!(leftovers.flatten().all(|entry| !entry.file_name().to_string_lossy().contains(".tmp")), "what was begun is finished");
    assert!((2..7).contains(&count()), "{} images", count());
    assert_eq!(interrupt("1", "KILL", true).status.code(), None);
    let both = ["0", "1"].map(|task| job(&shards, &format!("6{task}"), Some(task)).spawn().unwrap());
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(count() == 9 && !run.join("results.csv").exists(), "the results are the merge's");
    succeed(job(&merge, "42", None));
    assert_eq!(asked("scontrol"), "requeue 50\n");

    let whole = dir.path().join("whole");
    let output = succeed(sweep(&here.join("tiny.yaml"), &whole, &["--log", "json", "--set", question, "--set", slowly]));
    assert!(compared_files(&run) == compared_files(&whole), "the cluster's run differs");
    check_log(&events(&output.stderr), &whole);
    let failed = sweep(&here.join("tiny.yaml"), &whole, &["--log", "json", "--set", "images=many"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(2));
    let failed = events(&failed.stderr);
    assert!(failed.len() == 1 && failed[0]["event"] == "error" && failed[0]["text"].as_str().unwrap().contains("tiny.yaml: images"));
}

/// A scale with a number of its own has the scores of an experiment with this number alone, whether its base images are more or are
/// its own.
#[test]
fn scales_may_have_images_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    let rows = |images: &str| -> BTreeMap<(String, String), String> {
        let out = dir.path().join(images.replace([' ', ':', '{', '}'], "_"));
        succeed(sweep(&experiment, &out, &["--set", "scales=[0.25, 1]", "--set", &format!("images={images}")]));
        let csv = std::fs::read_to_string(out.join("results.csv")).unwrap();
        let key = |line: &str| {
            let fields: Vec<&str> = line.split(',').collect();
            (fields[1].to_owned(), fields[4].to_owned())
        };
        csv.lines().skip(1).map(|line| (key(line), line.to_owned())).collect()
    };
    let (three, four, mixed, other) = (rows("3"), rows("4"), rows("{0.25: 3, 1: 4}"), rows("{0.25: 4, 1: 3}"));
    assert_eq!(three.len(), 4);
    for (key, line) in &three {
        let is_small = key.0 == "0.25";
        assert_eq!(&mixed[key], if is_small { line } else { &four[key] }, "{key:?}");
        assert_eq!(&other[key], if is_small { &four[key] } else { line }, "{key:?}");
        assert_ne!(line, &four[key]);
    }
    check_failure(
        sweep(&experiment, &dir.path().join("none"), &["--set", "images={4: 3}"]),
        &["tiny.yaml: images", "4: expected one of", "0.25x"],
    );
    let missing = ["--set", "scales=[0.25, 1]", "--set", "images={1: 3}"];
    check_failure(sweep(&experiment, &dir.path().join("none"), &missing), &["tiny.yaml: images", "every scale", "0.25x"]);
    let status = json_of(&["status", dir.path().join("_0.25__4,_1__3_").to_str().unwrap(), "--json"]);
    let planned: Vec<u64> = status["cells"].as_array().unwrap().iter().map(|cell| cell["planned"].as_u64().unwrap()).collect();
    assert_eq!((planned, &status["finished"]), (vec![4, 4, 4, 3], &serde_json::json!(true)), "{status}");
}

#[test]
fn the_program_knows_its_commit_and_completes_its_commands() {
    let version = String::from_utf8(succeed(scalebench(&["--version"])).stdout).unwrap();
    assert_eq!(version, format!("scalebench {}\n", env!("SCALEBENCH_VERSION")));
    if crates().join("../.git").exists() {
        let commit = version.trim_end().strip_suffix(')').and_then(|text| Some(text.rsplit_once('(')?.1));
        assert!(commit.is_some_and(|commit| commit.len() == 12 && env!("SCALEBENCH_COMMIT").starts_with(commit)), "{version}");
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("completions");
    std::fs::write(&script, succeed(scalebench(&["completions", "bash"])).stdout).unwrap();
    let mut complete = Command::new("bash");
    complete.args([
        "-c",
        "source \"$0\" && COMP_WORDS=(scalebench sub) COMP_CWORD=1 && _scalebench scalebench sub scalebench && echo \"${COMPREPLY[*]}\"",
    ]);
    complete.arg(&script);
    assert_eq!(String::from_utf8(succeed(complete).stdout).unwrap(), "submit\n");
    for shell in ["zsh", "fish"] {
        let script = String::from_utf8(succeed(scalebench(&["completions", shell])).stdout).unwrap();
        assert!(script.contains("images-only"), "{shell}");
    }
}

/// Settings of methods and of the sampler as axes: cells, differences, columns, charts; and a comparison of two such runs.
#[test]
fn a_matrix_becomes_cells_columns_and_charts() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    std::fs::write(
        dir.path().join("matrix.yaml"),
        "base: tiny.yaml\n\
         methods: [direct-inf, {method: dilated.yaml, label: late, set: {freeu: {trigger: blocks, b1: 1.2, b2: 1.1, s1: 0.9, s2: 0.8}}}]\n\
         matrix:\n  methods.dilated.redilation.tau: [20, 50]\n  sampler.guidance_scale: [1, 7.5]\n\
         scales: [0.25, {factor: 0.25, width: 0.25, height: 1}]\n",
    )
    .unwrap();
    let dilated = "{name: dilated, title: Dilated, source: here, variants: [{redilation: {tau: 30, dilation: {\"mid_block.**\": 2}}}]}";
    std::fs::write(dir.path().join("dilated.yaml"), dilated).unwrap();
    let (file, out) = (dir.path().join("matrix.yaml"), dir.path().join("out"));
    assert!(experiment.exists());
    succeed(sweep(&file, &out, &[]));
    let csv = std::fs::read_to_string(out.join("results.csv")).unwrap();
    let columns: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let extra = ["baseline", "set.freeu", "set.redilation.tau", "set.sampler.guidance_scale"];
    assert_eq!(columns[8..12], extra);
    let at = |name: &str| columns.iter().position(|column| *column == name).unwrap();
    // Labels hold commas, so their cells are quoted.
    let unquoted = csv.replace("late,tau", "late;tau").replace(",guidance_scale", ";guidance_scale").replace('"', "");
    let rows: Vec<Vec<&str>> = unquoted.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 12);
    let identity: Vec<String> = rows[..6].iter().map(|row| format!("{} {} {}", row[4], row[8], row[9..12].join("/"))).collect();
    assert_eq!(
        identity,
        [
            "direct-inf_guidance_scale=1 direct-inf_guidance_scale=1 //1.0",
            "direct-inf_guidance_scale=7.5 direct-inf_guidance_scale=7.5 //7.5",
            "dilated_late;tau=20;guidance_scale=1 direct-inf_guidance_scale=1 late/20.0/1.0",
            "dilated_late;tau=20;guidance_scale=7.5 direct-inf_guidance_scale=7.5 late/20.0/7.5",
            "dilated_late;tau=50;guidance_scale=1 direct-inf_guidance_scale=1 late/50.0/1.0",
            "dilated_late;tau=50;guidance_scale=7.5 direct-inf_guidance_scale=7.5 late/50.0/7.5"
        ]
    );
    let number = |row: usize, column: &str| rows[row][at(column)].parse::<f64>().ok();
    for row in [2, 3, 8, 9] {
        let difference = number(row, "fid_r").unwrap() - number(row - 2, "fid_r").unwrap();
        assert!((number(row, "d_fid_r").unwrap() - difference).abs() < 1e-9 && difference != 0.0, "{csv}");
    }
    assert_eq!((number(0, "d_fid_r"), number(1, "d_fid_r")), (None, None));
    assert_eq!([2, 3].map(|i| rows[6][i].parse::<u32>().unwrap()), [64, 256]);
    assert!(out.join("cells/tiny/0.25x-0.25by1-dilated_late,tau=20,guidance_scale=1/manifest.jsonl").is_file());
    for file in ["fid_r-by-redilation.tau.svg", "fid_r-by-sampler.guidance_scale.svg", "grid-tiny-0.25x.png", "grid-tiny-0.25x-0.25by1.png"]
    {
        assert!(out.join("report").join(file).is_file(), "{file}");
    }
    let run: serde_json::Value = serde_yaml_of(&out.join("run.yaml"));
    let method = &run["experiment"]["methods"][2];
    assert_eq!((&method["variant_of"], &method["sampler"]["guidance_scale"]), (&"dilated".into(), &1.0.into()));
    assert_eq!(method["settings"]["variants"][0]["redilation"]["tau"], 20.0);
    assert_eq!(run["experiment"]["sampler"]["steps"], 2, "from the base");

    let compared = succeed(scalebench(&["compare", out.to_str().unwrap(), out.to_str().unwrap(), "--no-speed", "--json"]));
    let compared: serde_json::Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!(compared["cells"].as_array().unwrap().len(), 13);
    assert_eq!(compared["only_in_run"].as_array().unwrap().len(), 0);
}

/// The rows of `results.csv` by method: column to value.
fn results(out: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let csv = std::fs::read_to_string(out.join("results.csv")).unwrap();
    let columns: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let row = |line: &str| -> BTreeMap<String, String> {
        columns.iter().zip(line.split(',')).map(|(column, value)| ((*column).to_owned(), value.to_owned())).collect()
    };
    csv.lines().skip(1).map(|line| (row(line)["method"].clone(), row(line))).collect()
}

/// Under every seed of an axis stands what a run with that seed makes, compared with the base-resolution images of that seed.
#[test]
fn seeds_are_an_axis() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    let [axis, alone] = ["axis", "alone"].map(|name| dir.path().join(name));
    succeed(sweep(&experiment, &axis, &["--set", "matrix={seed: [0, 100]}"]));
    succeed(sweep(&experiment, &alone, &["--set", "seed=100"]));
    let (rows, expected) = (results(&axis), results(&alone));
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["direct-inf_seed=0", "direct-inf_seed=100", "other_seed=0", "other_seed=100"]);
    for method in ["direct-inf", "other"] {
        let (found, expected) = (&rows[&format!("{method}_seed=100")], &expected[method]);
        for (column, value) in expected.iter().filter(|(column, _)| !["method", "baseline"].contains(&column.as_str())) {
            assert!(found[column] == *value || column.ends_with("_standing"), "{method} {column}: {} {value}", found[column]);
        }
    }
    assert_eq!(rows["other_seed=100"]["baseline"], "direct-inf_seed=100");
    assert_eq!(rows["other_seed=100"]["set.seed"], "100.0");
    let manifest = std::fs::read_to_string(axis.join("cells/tiny/0.25x-other_seed=100/manifest.jsonl")).unwrap();
    let seeds: Vec<serde_json::Value> =
        manifest.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seed"].clone()).collect();
    assert_eq!(seeds, [100, 101, 102]);
    for cell in ["1x-direct-inf", "1x-direct-inf_seed=100"] {
        assert!(axis.join("cells/tiny").join(cell).is_dir(), "{cell}");
    }
    for seed in [0, 100] {
        assert!(axis.join(format!("report/grid-tiny-0.25x-seed={seed}.png")).is_file());
    }
    check_failure(sweep(&experiment, &axis, &["--set", "matrix={seed: [one]}"]), &["methods", "seed: expected a whole number", "one"]);
}

/// Mean and covariance serve FID as the images themselves do; what needs more is empty, and everything says why.
#[test]
fn a_reference_may_be_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    let (real, _, extractor) = write_images(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let stats = |name: &str, more: &[&str]| {
        succeed(scalebench(&[&["stats", &real, "--extractor", &extractor, "--out", &path(name)], more].concat()));
    };
    stats("real.npz", &[]);
    stats("real.safetensors", &[]);
    stats("other.safetensors", &["--preprocess", "pytorch-fid"]);
    let run = |out: &str, reference: &str| sweep(&experiment, &dir.path().join(out), &["--set", &format!("reference={{{reference}}}")]);
    succeed(run("images", &format!("folder: {real}")));
    let notes = String::from_utf8(succeed(run("npz", &format!("statistics: {}", path("real.npz")))).stderr).unwrap();
    assert!(notes.contains("real.npz does not say how it was made; taken as inception-v3-fid") && notes.contains("clean"), "{notes}");
    assert!(notes.contains("note: kid_r is empty: ") && notes.contains("holds mean and covariance, and kid needs the features"), "{notes}");
    succeed(run("ours", &format!("statistics: {}", path("real.safetensors"))));
    let expected = results(&dir.path().join("images"));
    for (out, n_reference) in [("npz", ""), ("ours", "12")] {
        let rows = results(&dir.path().join(out));
        for (method, row) in &expected {
            for column in ["fid_r", "fid_r_lo", "d_fid_r", "d_fid_r_hi", "fid_b", "kid_b"] {
                let [a, b] = [row, &rows[method]].map(|row| row[column].parse::<f64>().ok());
                assert!(a.zip(b).map_or(a == b, |(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(1.0)), "{out} {method} {column}: {a:?} {b:?}");
            }
            assert!(!row["kid_r"].is_empty() && rows[method]["kid_r"].is_empty() && rows[method]["n_reference"] == n_reference, "{out}");
        }
        let report = std::fs::read_to_string(dir.path().join(out).join("report/index.html")).unwrap();
        let table = std::fs::read_to_string(dir.path().join(out).join("report/table.md")).unwrap();
        assert!(report.contains("is empty: ") && table.contains("KID_r·10³ is empty: "), "{table}");
    }
    // Comparisons between runs have the statistics from the run's own directory.
    let [npz, images] = ["npz", "images"].map(path);
    std::fs::remove_file(path("real.npz")).unwrap();
    let (code, text) = status_of(scalebench(&["compare", &npz, &npz]));
    assert!(code == Some(0) && text.contains("FID_r") && !text.contains("KID_r"), "{text}");
    check_failure(scalebench(&["compare", &npz, &images]), &["measure different things", "reference"]);

    let other = format!("statistics: {}", path("other.safetensors"));
    check_failure(
        run("no", &other),
        &["tiny.yaml: reference.statistics", "other.safetensors was made with", "pytorch-fid", "it needs", "clean"],
    );
    let wide = crates().join("../datasets/pocket-inception");
    succeed(scalebench(&["stats", &real, "--extractor", wide.to_str().unwrap(), "--out", &path("wide.npz")]));
    let wide = format!("statistics: {}", path("wide.npz"));
    check_failure(run("no", &wide), &["tiny.yaml: reference", "wide.npz", "expected mean and covariance of", "found"]);
    check_failure(run("no", "statistics: none.npz"), &["tiny.yaml: reference", "none.npz"]);
    check_failure(run("no", "statistics: none.npz, images: 3"), &["tiny.yaml: reference", "{statistics: FILE}"]);
}

/// A manual page for every command, as `man` reads them.
#[test]
fn manual_pages_are_written() {
    let page = String::from_utf8(succeed(scalebench(&["man"])).stdout).unwrap();
    assert!(page.contains(".TH scalebench 1") && page.contains("scalebench\\-sweep(1)"), "{page}");
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    succeed(scalebench(&["man", folder.to_str().unwrap()]));
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(read("scalebench-sweep.1").contains("Example: two processes"));
    assert!(read("scalebench-weights-convert.1").contains("Example"));
    assert!(std::fs::read_dir(&folder).unwrap().count() > 25);
}

fn serde_yaml_of(file: &Path) -> serde_json::Value {
    serde_yaml::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn shipped_experiments() -> Vec<PathBuf> {
    let root = crates().join("../experiments");
    let files = [root.clone(), root.join("ablations")].into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut files: Vec<PathBuf> =
        files.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

/// A dry run of what needs files that are not shipped says what is not there, and counts by the family's published shapes.
fn counts_without_files(file: &Path, out: &Path) {
    let run = |options: &[&str]| {
        let mut command = sweep(file, out, options);
        command.env("TORCH_HOME", out).env("HF_HOME", out);
        succeed(command)
    };
    let output = run(&["--dry-run", "--json"]);
    let notes = String::from_utf8(output.stderr).unwrap();
    for fragment in ["captions.txt", "pt_inception", "images", "models.", "Hugging Face cache"] {
        assert!(notes.contains(fragment), "{fragment}: {notes}");
    }
    let cost: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let cells = cost["cells"].as_array().unwrap();
    // Five methods at four scales, and what `_b` scores compare with.
    assert_eq!((cells.len(), &cost["total"]["images"], &cost["total"]["hours"]), (21, &210_000.into(), &serde_json::Value::Null));
    let cell = |name: &str| cells.iter().find(|cell| cell["cell"].as_str().unwrap().ends_with(name)).unwrap();
    let passes = |name: &str| cell(name)["passes"].as_u64().unwrap();
    // 50 guided steps; noise-damped guidance makes a third pass for as many of them as its published `ndcfg_tau` says.
    let damped = if file.ends_with("table1_sd21.yaml") { 37 } else { 35 };
    assert_eq!([passes("/4x-direct-inf"), passes("/4x-scalecrafter"), passes("/16x-scalecrafter")], [100, 100, 100 + damped]);
    let flops = |name: &str| cell(name)["flops_per_image"].as_f64().unwrap();
    assert!(flops("/16x-direct-inf") > 4.0 * flops("/4x-direct-inf") && flops("/4x-direct-inf") > 4.0 * flops("/1x-direct-inf"));
    if file.ends_with("table1_sd15.yaml") {
        // BK-SDM (Kim et al. 2024, table 1): 338.7 G multiply-adds a pass at 512², to which the products of attention and the decoder add.
        let least = 100.0 * 2.0 * 338.7e9;
        assert!((least..1.5 * least).contains(&flops("/1x-direct-inf")), "{}", flops("/1x-direct-inf"));
    }
    let text = String::from_utf8(run(&["--dry-run"]).stdout).unwrap();
    assert!(text.contains("210000 to make in a time unknown without the checkpoint"), "{text}");
}

/// Cells that are timed in a test: those of large experiments, which take a second each, are counted.
const MOST_TIMED: usize = 8;

/// What can be run here says what it costs; what needs files that are not shipped names the first one that is missing.
#[test]
fn shipped_experiments_pass_a_dry_run() {
    let out = tempfile::tempdir().unwrap();
    let files = shipped_experiments();
    assert!(files.len() >= 16, "{files:?}");
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let out = out.path().join(&name);
        if name.starts_with("table1_") {
            let lacks = |overrides: &[&str], fragments: &[&str]| {
                let overrides: Vec<&str> = overrides.iter().flat_map(|text| ["--set", text]).collect();
                let mut command = sweep(&file, &out, &overrides);
                command.env("TORCH_HOME", &out).env("HF_HOME", &out).env("HF_HUB_OFFLINE", "1");
                check_failure(command, &[&[name.as_str()], fragments].concat());
            };
            lacks(&[], &["prompts", "captions.txt", "cannot read"]);
            let captions = out.with_extension("txt");
            std::fs::write(&captions, "a cat\n").unwrap();
            let captions = format!("prompts.file={}", captions.display());
            lacks(&[&captions], &["metrics.extractor", "pt_inception"]);
            let extractor = format!("metrics.extractor={}", crates().join("../datasets/pocket-inception").display());
            lacks(&[&captions, &extractor], &["reference", "images"]);
            let emoji = "reference={source: emoji, images: 8}";
            lacks(&[&captions, emoji, &extractor], &["models.", ".path", "stab"]);
            counts_without_files(&file, &out);
            continue;
        }
        // Counted alone first: the last of more shards than there are images has nothing to make, so nothing is timed.
        let costs = |shard: &str| -> serde_json::Value {
            serde_json::from_slice(&succeed(sweep(&file, &out, &["--dry-run", "--json", "--shard", shard])).stdout).unwrap()
        };
        let counted = costs("9999/10000");
        let n_cells = counted["cells"].as_array().unwrap().len();
        let is_timed = n_cells <= MOST_TIMED;
        let cost = if is_timed { costs("0/16") } else { counted };
        let cells = cost["cells"].as_array().unwrap();
        assert!(n_cells >= 2 || name == "pocket", "{name}");
        for cell in cells {
            let number = |key: &str| cell[key].as_f64().unwrap_or_else(|| panic!("{name}: {key} of {cell}"));
            assert!(!is_timed || number("seconds_per_image") > 0.0 && number("peak_memory_bytes") > 1e6, "{name}: {cell}");
            assert!(number("passes") >= number("steps") && number("flops_per_image") > 1e8, "{name}: {cell}");
        }
        let sum = |key: &str| cells.iter().map(|cell| cell[key].as_f64().unwrap()).sum::<f64>();
        assert!((sum("hours") - cost["total"]["hours"].as_f64().unwrap()).abs() < 1e-9 && sum("to_do") == cost["total"]["to_do"], "{name}");
        assert!(!out.exists(), "a dry run writes nothing");
    }
}

/// A dry run counts what the run then does, and does not ask the clock twice.
#[test]
fn a_dry_run_counts_passes_and_keeps_its_calibration() {
    let dir = tempfile::tempdir().unwrap();
    let file = crates().join("../experiments/quick.yaml");
    let run = || {
        let mut command = sweep(&file, &dir.path().join("out"), &["--dry-run", "--json"]);
        command.env("XDG_CACHE_HOME", dir.path());
        serde_json::from_slice::<serde_json::Value>(&succeed(command).stdout).unwrap()
    };
    let first = run();
    assert_eq!(run(), first, "from the cache");
    let cell = |name: &str| first["cells"].as_array().unwrap().iter().find(|cell| cell["cell"] == name).unwrap();
    // 10 guided steps; at 16× a third pass while noise-damped guidance acts: 35 of 50 steps, here 7 of 10.
    assert_eq!((&cell("pocket/4x-scalecrafter")["steps"], &cell("pocket/4x-scalecrafter")["passes"]), (&10.into(), &20.into()));
    assert_eq!(cell("pocket/16x-scalecrafter")["passes"], 27);
    let per_image = |name: &str| cell(name)["flops_per_image"].as_f64().unwrap();
    assert_eq!(per_image("pocket/4x-attn-sf"), per_image("pocket/4x-direct-inf"));
    let ratio = per_image("pocket/16x-direct-inf") / per_image("pocket/4x-direct-inf");
    assert!((4.0..8.0).contains(&ratio), "four times the pixels, and attention grows by their square: {ratio}");
    assert_eq!(scalebench(&["sweep", "--json", file.to_str().unwrap()]).output().unwrap().status.code(), Some(2));
}

#[test]
fn small_commands_work() {
    let methods = String::from_utf8(succeed(scalebench(&["methods"])).stdout).unwrap();
    assert!(methods.contains("scalecrafter-disperse"));

    let matrix = String::from_utf8(succeed(scalebench(&["disperse"])).stdout).unwrap();
    assert_eq!(matrix.lines().count(), 25);
    assert!(matrix.lines().all(|line| line.split_whitespace().count() == 9));

    let protocols = String::from_utf8(succeed(scalebench(&["protocols"])).stdout).unwrap();
    assert!(protocols.contains("self-cascade") && protocols.contains("fid_p kid_p"), "{protocols}");
    let freescale = String::from_utf8(succeed(scalebench(&["protocols", "freescale"])).stdout).unwrap();
    assert!(freescale.contains("resize: false"), "{freescale}");
    check_failure(scalebench(&["protocols", "freescal"]), &["did you mean `freescale`?"]);
}

/// Two folders of twelve small images, `real` and `fake`, and the tiny Inception.
fn write_images(dir: &Path) -> (String, String, String) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for (split, folder) in [("reference", "real"), ("train", "fake")] {
        succeed(scalebench(&["dataset", "--split", split, "--views", "12", "--size", "24", "--png", "--out", &path(folder)]));
    }
    (path("real"), path("fake"), crates().join("runner/tests/data/tiny-inception").to_str().unwrap().to_owned())
}

fn json_of(args: &[&str]) -> serde_json::Value {
    serde_json::from_slice(&succeed(scalebench(args)).stdout).unwrap()
}

/// A folder, its zip archive, its feature file and its statistics are one side of a comparison.
#[test]
fn sides_of_every_kind_give_one_number() {
    let dir = tempfile::tempdir().unwrap();
    let (real, fake, extractor) = write_images(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let features = path("real.safetensors");
    succeed(scalebench(&["features", "--images", &real, "--extractor", &extractor, "--out", &features]));
    let zip = path("real.zip");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&zip).unwrap());
    for entry in std::fs::read_dir(&real).unwrap() {
        let entry = entry.unwrap().path();
        let name = format!("inside/{}", entry.file_name().unwrap().to_str().unwrap());
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut archive, &std::fs::read(&entry).unwrap()).unwrap();
    }
    archive.finish().unwrap();
    let score = |real: &str, metrics: &str| {
        json_of(&["score", "--real", real, "--fake", &fake, "--extractor", &extractor, "--metrics", metrics, "--json"])
    };
    let whole = score(&real, "fid,kid,is,precision,recall,density,coverage");
    assert!(whole["fid"]["value"].as_f64().unwrap() > 0.0 && whole["fid"]["n"] == 12, "{whole}");
    for metric in ["fid", "kid", "is", "precision", "recall", "density", "coverage"] {
        let bounds = ["lo", "value", "hi"].map(|key| whole[metric][key].as_f64().unwrap());
        assert!(bounds.is_sorted(), "{metric}: {bounds:?}");
    }
    for other in [&features, &zip] {
        let found = score(other, "fid,kid");
        assert_eq!((&found["fid"], &found["kid"]), (&whole["fid"], &whole["kid"]), "{other}");
    }
    for statistics in ["real.npz", "statistics.safetensors"] {
        let file = path(statistics);
        let printed = String::from_utf8(succeed(scalebench(&["stats", &features, "--out", &file])).stdout).unwrap();
        assert!(printed.contains("rank 11"), "{printed}");
        let found = score(&file, "fid");
        // Twelve images: the statistics' route carries noise from eigenvalues of rounding size.
        let (value, expected) = (found["fid"]["value"].as_f64().unwrap(), whole["fid"]["value"].as_f64().unwrap());
        assert!((value / expected - 1.0).abs() < 1e-4, "{statistics}: {value} {expected}");
    }
    check_failure(
        scalebench(&["score", "--real", &path("statistics.safetensors"), "--fake", &fake, "--extractor", &extractor]),
        &["kid", "not statistics"],
    );

    let subsets = ["--metrics", "kid_subsets", "--kid-subsets", "3", "--kid-subset-size", "5"];
    let found = json_of(&[&["score", "--real", &features, "--fake", &fake, "--extractor", &extractor, "--json"][..], &subsets].concat());
    assert!(found["kid_subsets"]["mean"].is_f64(), "{found}");
    check_failure(scalebench(&["score", "--real", &path("nowhere"), "--fake", &features]), &["--real", "nowhere"]);
    check_failure(scalebench(&["score", "--real", &real, "--fake", &features]), &["--extractor"]);
    // Another profile is another space.
    let other = ["score", "--real", &features, "--fake", &fake, "--extractor", &extractor, "--preprocess", "pytorch-fid"];
    check_failure(scalebench(&other), &["preprocess profile is", "pytorch-fid", "clean"]);
}

#[test]
fn corrupt_files_are_listed_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (real, fake, extractor) = write_images(dir.path());
    for name in ["a.png", "b.jpg"] {
        std::fs::write(Path::new(&real).join(name), b"no image").unwrap();
    }
    let score = ["score", "--real", &real, "--fake", &fake, "--extractor", &extractor, "--json"];
    check_failure(scalebench(&score), &["2 of 14 images cannot be decoded", "a.png", "b.jpg"]);
    let found = json_of(&[&score[..], &["--skip-corrupt"]].concat());
    assert_eq!(found["skipped"], serde_json::json!(["a.png", "b.jpg"]));
}

/// What `score` says under a protocol is what the protocol's parts say one by one.
#[test]
fn a_protocol_is_the_sum_of_its_flags() {
    let dir = tempfile::tempdir().unwrap();
    let (real, fake, extractor) = write_images(dir.path());
    let score = ["score", "--real", &real, "--fake", &fake, "--base", &real, "--extractor", &extractor, "--json"];
    let found = json_of(&[&score[..], &["--protocol", "scalecrafter", "--base-size", "16"]].concat());
    let reduced = json_of(&[&score[..], &["--metrics", "fid", "--fake-pre-resize", "16"]].concat());
    let whole = json_of(&[&score[..], &["--metrics", "fid"]].concat());
    assert_eq!(found["fid_b"]["value"], reduced["fid"]["value"]);
    assert_eq!(found["fid_r"], whole["fid"]);
    assert_ne!(found["fid_r"]["value"], found["fid_b"]["value"]);
    let cropped = json_of(&[&score[..], &["--metrics", "fid", "--fake-crops", "4x16,grid", "--real-crops", "2x16,shared,seed=3"]].concat());
    assert_eq!((&cropped["fid"]["n"], cropped["fid"] == whole["fid"]), (&serde_json::json!(12), false), "{cropped}");
    check_failure(
        scalebench(&["score", "--real", &real, "--fake", &fake, "--extractor", &extractor, "--protocol", "pocket"]),
        &["--base-size"],
    );
    let bad = ["score", "--real", &real, "--fake", &fake, "--extractor", &extractor, "--fake-crops", "4by16"];
    let output = scalebench(&bad).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("expected COUNTxSIZE"));
}

#[test]
fn weights_are_converted_once_and_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let [once, twice] = ["once.safetensors", "twice.safetensors"].map(|name| dir.path().join(name));
    let source = crates().join("runner/tests/data/tiny-inception");
    let convert = |from: &Path, to: &Path| {
        let mut command = scalebench(&["weights", "convert"]);
        command.arg(from).arg("--out").arg(to);
        command
    };
    let report = String::from_utf8(succeed(convert(&source, &once)).stdout).unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let width = report.lines().find_map(|line| line.strip_prefix("width")).unwrap().trim();
    assert!(config.contains(width), "{report}\n{config}");
    // The converted file needs no config.json beside it, and converting it changes nothing.
    let mut bare = convert(&once, Path::new("twice.safetensors"));
    bare.current_dir(dir.path());
    succeed(bare);
    let bytes = std::fs::read(&once).unwrap();
    assert!(bytes == std::fs::read(&twice).unwrap());
    std::fs::write(dir.path().join("half.pth"), &bytes[..bytes.len() / 2]).unwrap();
    check_failure(convert(&dir.path().join("half.pth"), &twice), &["half.pth is truncated"]);
    assert!(bytes == std::fs::read(&twice).unwrap(), "a failure leaves what was there");
}

/// Exit status and stdout of a comparison.
fn status_of(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Multiplies what the images of a cell cost.
fn edit_timings(run: &str, key: &str, factor: f64) {
    let file = Path::new(run).join("cells/pocket/1x-other/timings.jsonl");
    let lines = std::fs::read_to_string(&file).unwrap();
    let edited = lines.lines().map(|line| {
        let mut timing: serde_json::Value = serde_json::from_str(line).unwrap();
        timing[key] = match timing[key].as_u64() {
            Some(bytes) => ((bytes as f64 * factor) as u64).into(),
            None => (timing[key].as_f64().unwrap() * factor).into(),
        };
        format!("{timing}\n")
    });
    std::fs::write(&file, edited.collect::<String>()).unwrap();
}

/// A run that costs more than the accepted one, and nothing else, fails by as much.
fn check_costs(accepted: &str, latest: &str) {
    // By edited files.
    edit_timings(latest, "seconds", 1.3);
    let (code, text) = status_of(scalebench(&["compare", accepted, latest]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("regression: pocket/1x-other: slower") && text.contains("+30 %"), "{text}");
    assert_eq!(status_of(scalebench(&["compare", accepted, latest, "--slow-down", "1.4"])).0, Some(0));
    edit_timings(latest, "peak_memory_bytes", 1.25);
    let (code, text) = status_of(scalebench(&["compare", accepted, latest, "--no-speed"]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("regression: pocket/1x-other: more memory") && text.contains("+25 % (limit +10 %)"), "{text}");
    assert_eq!(status_of(scalebench(&["compare", accepted, latest, "--no-speed", "--more-memory", "1.3"])).0, Some(0));
}

/// What `compare` and `status` do not take.
fn check_refusals(folder: &Path, accepted: &str) {
    let [missing, empty] = ["missing", "empty"].map(|name| folder.join(name).to_str().unwrap().to_owned());
    std::fs::create_dir(&empty).unwrap();
    check_failure(scalebench(&["compare", accepted, &missing]), &["missing", "expected a run directory"]);
    check_failure(scalebench(&["compare", &empty, accepted]), &["run.yaml", "expected the description of a run"]);
    check_failure(scalebench(&["compare", accepted, accepted, "--alpha", "2"]), &["--alpha", "expected a probability"]);
    check_failure(scalebench(&["status", &missing]), &["missing", "expected a run directory"]);
}

/// Nights of one experiment: the first is accepted, an unchanged one passes, a wrong dilation and a slow-down are caught and
/// named, and what was meant can be accepted.
#[test]
fn nights_are_compared_with_the_accepted_one() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = write_experiment(dir.path());
    let history = dir.path().join("history");
    // The pocket model, since random weights cannot get worse.
    let datasets = crates().join("../datasets");
    let set = [
        format!("models={{pocket: {{path: {}}}}}", datasets.join("pocket").display()),
        format!("metrics={{protocol: pocket, extractor: {}}}", datasets.join("pocket-inception").display()),
        "reference.images=64".to_owned(),
        "sampler.steps=4".to_owned(),
        "scales=[1]".to_owned(),
        "images=12".to_owned(),
    ];
    let nightly = |more: &[&str]| {
        let mut command = scalebench(&["nightly"]);
        command
            .arg(&experiment)
            .arg("--history")
            .arg(&history)
            .arg("--no-memory")
            .args(set.iter().flat_map(|set| ["--set", set]))
            .args(more);
        command
    };
    check_failure(nightly(&["--accept"]), &["latest", "expected a run to accept"]);
    let (code, text) = status_of(nightly(&["--no-speed"]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("accepted: the first run"), "{text}");
    assert!(!history.join("accepted/cells/pocket/1x-other/images").exists(), "no images are kept twice");

    // Built, drawn and measured anew, to the last bit.
    let (code, text) = status_of(nightly(&["--no-speed"]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("12 images, all files the same") && text.contains("no regression"), "{text}");
    let [table, trend] = ["history.parquet", "trend.svg"].map(|name| std::fs::read(history.join(name)).unwrap());
    assert!(table.starts_with(b"PAR1") && String::from_utf8(trend).unwrap().contains("pocket/1x-other"));

    // One wrong dilation in one method: only its cell is named.
    let other = dir.path().join("other.yaml");
    let plain = std::fs::read_to_string(&other).unwrap();
    let wrong = "name: other\ntitle: Other\nsource: a test\nvariants:\n  - redilation: {tau: 50, dilation: {\"down_blocks.**\": 2}}\n";
    std::fs::write(&other, wrong).unwrap();
    let (code, text) = status_of(nightly(&["--no-speed"]));
    assert_eq!(code, Some(1), "{text}");
    let regressions: Vec<&str> = text.lines().filter(|line| line.starts_with("regression: ")).collect();
    assert!(!regressions.is_empty() && regressions.iter().all(|line| line.starts_with("regression: pocket/1x-other: ")), "{text}");
    assert!(text.contains("note: method other: methods.1.settings"), "{text}");
    for file in ["comparison.json", "comparison.xml", "report/index.html"] {
        assert!(history.join("latest").join(file).is_file(), "{file}");
    }
    // The same from the two directories, without the program that made them.
    let [accepted, latest] = ["accepted", "latest"].map(|name| history.join(name).to_str().unwrap().to_owned());
    let junit = dir.path().join("junit.xml");
    let (code, json) = status_of(scalebench(&["compare", &accepted, &latest, "--json", "--no-speed", "--junit", junit.to_str().unwrap()]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json["regressions"].as_array().unwrap().len()), (Some(1), regressions.len()), "{json}");
    assert!(roxmltree::Document::parse(&std::fs::read_to_string(junit).unwrap()).is_ok());

    // It was meant: from now on this is what nights are compared with.
    assert_eq!(status_of(nightly(&["--accept"])).0, Some(0));
    assert_eq!(status_of(scalebench(&["compare", &accepted, &latest])).0, Some(0));

    check_costs(&accepted, &latest);

    // An accepted run a thousand times as fast: the night times its cells again before it says so, and keeps what it saw.
    edit_timings(&accepted, "seconds", 0.001);
    let (code, text) = status_of(nightly(&["--slow-down", "50"]));
    assert_eq!(code, Some(1), "{text}");
    let again = |line: &&str| line.contains("pocket/1x-other: slower than the accepted run; timed again");
    assert_eq!(text.lines().filter(again).count(), 2, "{text}");
    assert!(text.contains("regression: pocket/1x-other: slower"), "{text}");

    // What cannot be compared is an error before anything is made.
    let latest_run = Path::new(&latest).join("night.json");
    let before = std::fs::read(&latest_run).unwrap();
    check_failure(nightly(&["--set", "reference.images=7"]), &["measure different things", "reference.images is 64 there and 7 here"]);
    let other_name = dir.path().join("renamed.yaml");
    std::fs::copy(&experiment, &other_name).unwrap();
    let mut renamed = scalebench(&["nightly"]);
    renamed.arg(&other_name).arg("--history").arg(&history);
    check_failure(renamed, &["this history is that of tiny", "renamed"]);
    std::fs::write(history.join("history.parquet"), &table[..table.len() / 2]).unwrap();
    check_failure(nightly(&[]), &["cannot read", "history.parquet"]);
    assert_eq!(std::fs::read(&latest_run).unwrap(), before);
    std::fs::write(&other, plain).unwrap();

    check_refusals(dir.path(), &accepted);
    let status = json_of(&["status", &latest, "--json"]);
    assert_eq!((&status["done"], &status["finished"]), (&serde_json::json!(24), &serde_json::json!(true)), "{status}");
}
