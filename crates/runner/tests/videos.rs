//! Videos, from the outside: files of `generate`, sweeps that resume, scores of folders and arrays.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{fail, models, scalebench, stderr, stdout};

/// What it said on stdout.
#[track_caller]
fn succeed(args: &[&str]) -> String {
    stdout(&common::succeed(scalebench(args)))
}

/// One line on stderr that holds the fragment.
#[track_caller]
fn refused(args: &[&str], fragment: &str) {
    let output = fail(scalebench(args), &[fragment]);
    assert_eq!(stderr(&output).trim_end().lines().count(), 1, "{args:?}: {}", stderr(&output));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn generate_writes_frames_and_an_animation() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, adapter) = (models().join("tiny-sd15"), models().join("tiny-motion-adapter"));
    let out = dir.path().join("corgi");
    let trace = dir.path().join("trace.safetensors");
    let with = |out: &Path, more: &[&str]| -> Vec<String> {
        let all = ["generate", "--checkpoint", text(&checkpoint), "--prompt", "a corgi", "--size", "64x64", "--steps", "2", "--out"];
        all.iter().copied().chain([text(out)]).chain(more.iter().copied()).map(str::to_owned).collect()
    };
    fn strs(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    let frames = ["--motion-adapter", text(&adapter), "--frames", "4"];
    let arguments = with(&out, &[&frames[..], &["--fps", "5", "--trace", text(&trace)]].concat());
    succeed(&strs(&arguments));
    assert_eq!(names(dir.path()), ["corgi", "corgi.webp", "trace.safetensors"]);
    assert_eq!(names(&out), ["000000.png", "000001.png", "000002.png", "000003.png"]);
    let file = |name: &str| std::fs::read(out.join(name)).unwrap();
    assert_ne!(file("000000.png"), file("000001.png"));
    // Again, the same; one frame is an image.
    let before = file("000003.png");
    succeed(&strs(&arguments));
    assert_eq!(file("000003.png"), before);
    succeed(&strs(&with(&dir.path().join("one.png"), &["--motion-adapter", text(&adapter)])));
    assert!(dir.path().join("one.png").is_file());

    refused(
        &strs(&with(&out, &["--motion-adapter", text(&adapter), "--frames", "9"])),
        "`frames` is 9, expected a number from 1 to the motion modules' 8",
    );
    refused(&strs(&with(&out, &["--frames", "2"])), "expected 1: this network has no layers over frames");
    refused(&strs(&with(&out, &["--motion-adapter", "nowhere", "--frames", "2"])), "nowhere: no such folder");
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    refused(&strs(&arguments), "holds `notes.txt`");
    assert_eq!(std::fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
}

/// ModelScope's U-Net and scheduler with the rest of a checkpoint.
fn checkpoint(folder: &Path) {
    for (from, parts) in [("tiny-sd15", &["text_encoder", "tokenizer", "vae"][..]), ("tiny-modelscope", &["unet", "scheduler"])] {
        for part in parts {
            let to = folder.join(part);
            std::fs::create_dir_all(&to).unwrap();
            for entry in std::fs::read_dir(models().join(from).join(part)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
}

/// A small I3D with made-up weights.
fn i3d(file: &Path) {
    let c = |full: usize| ((full as f64 / 16.0).round() as usize).max(1);
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut unit = |name: &str, from: usize, to: usize, k: usize| {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            shapes.insert(format!("{name}.bn.{part}"), vec![to]);
        }
        shapes.insert(format!("{name}.conv3d.weight"), vec![to, from, k, k, k]);
    };
    unit("Conv3d_1a_7x7", 3, c(64), 7);
    unit("Conv3d_2b_1x1", c(64), c(64), 1);
    unit("Conv3d_2c_3x3", c(64), c(192), 3);
    let mut n = c(192);
    for (name, outputs) in [
        ("3b", [64, 96, 128, 16, 32, 32]),
        ("3c", [128, 128, 192, 32, 96, 64]),
        ("4b", [192, 96, 208, 16, 48, 64]),
        ("4c", [160, 112, 224, 24, 64, 64]),
        ("4d", [128, 128, 256, 24, 64, 64]),
        ("4e", [112, 144, 288, 32, 64, 64]),
        ("4f", [256, 160, 320, 32, 128, 128]),
        ("5b", [256, 160, 320, 32, 128, 128]),
        ("5c", [384, 192, 384, 48, 128, 128]),
    ] {
        let [b0, b1a, b1b, b2a, b2b, b3b] = outputs.map(c);
        for (branch, from, to, k) in
            [("b0", n, b0, 1), ("b1a", n, b1a, 1), ("b1b", b1a, b1b, 3), ("b2a", n, b2a, 1), ("b2b", b2a, b2b, 3), ("b3b", n, b3b, 1)]
        {
            unit(&format!("Mixed_{name}.{branch}"), from, to, k);
        }
        n = b0 + b1b + b2b + b3b;
    }
    shapes.insert("logits.conv3d.weight".into(), vec![6, n, 1, 1, 1]);
    shapes.insert("logits.conv3d.bias".into(), vec![6]);
    let metadata = r#"{"bn_epsilon":"1e-5","num_classes":"6","side":"32","width":"0.0625"}"#;
    let (mut header, mut data) = (format!("{{\"__metadata__\":{metadata}"), Vec::new());
    let mut state = 1u32;
    for (name, shape) in &shapes {
        let n: usize = shape.iter().product();
        let (start, fan_in) = (data.len(), shape[1..].iter().product::<usize>() as f32);
        for _ in 0..n {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            let value = match name {
                _ if name.ends_with("conv3d.weight") => uniform * (6.0 / fan_in).sqrt(),
                _ if name.ends_with("bn.weight") || name.ends_with("running_var") => 1.0 + 0.3 * uniform,
                _ => 0.1 * uniform,
            };
            data.extend(value.to_le_bytes());
        }
        header += &format!(",\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{start},{}]}}", data.len());
    }
    header += "}";
    std::fs::write(file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
}

/// An array of grey videos that change at different speeds.
fn npy(file: &Path, videos: usize, frames: usize) {
    let mut bytes = Vec::new();
    for video in 0..videos {
        for frame in 0..frames {
            bytes.extend((0..20 * 20 * 3).map(|i| (40 * video + frame * (video + 1) * 4 + i % 50) as u8));
        }
    }
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({videos}, {frames}, 20, 20, 3), }}");
    let header = format!("{header:<117}\n");
    let start = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(file, [start, bytes].concat()).unwrap();
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if [".png", "results.csv", "manifest.jsonl", ".safetensors"].iter().any(|end| name.ends_with(end)) {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_sweep_of_videos_resumes_and_is_scored() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(&dir.path().join("tiny"));
    i3d(&dir.path().join("i3d.safetensors"));
    npy(&dir.path().join("real.npy"), 5, 10);
    let method = "name: other\ntitle: Other\nsource: a test\nvariants:\n  \
                  - redilation: {tau: 50, of_steps: 50, progressive: false, dilation: {\"mid_block.**\": 2}}\n";
    std::fs::write(dir.path().join("other.yaml"), method).unwrap();
    let protocol = "name: videos\ntitle: Videos\nsource: a test of videos\ncompare:\n  \
                    - {id: r, against: reference, network: i3d, metrics: [fvd, kvd, frame_difference, flicker], clip: {frames: 9}}\n  \
                    - {id: b, against: base, network: i3d, metrics: [fvd], clip: {frames: 9}}\n";
    std::fs::write(dir.path().join("videos.yaml"), protocol).unwrap();
    let experiment = dir.path().join("moving.yaml");
    let write = |frames: &str, reference: &str| {
        let text = format!(
            "models: {{tiny: {{path: tiny}}}}\nmethods: [direct-inf, other.yaml]\nscales: [0.25]\nimages: 3\n{frames}\n\
             sampler: {{steps: 2, eta: 0}}\nprompts: {{source: emoji}}\nreference: {reference}\n\
             metrics: {{protocol: videos.yaml, i3d: i3d.safetensors}}\n"
        );
        std::fs::write(&experiment, text).unwrap();
    };
    let out = dir.path().join("run");
    let sweep = ["sweep", text(&experiment), "--out", text(&out)];
    write("frames: 1", "{folder: real.npy}");
    refused(&sweep, "videos measures videos, and the experiment makes images: frames is 1");
    write("frames: 9", "{source: emoji, images: 8}");
    let counts = succeed(&["sweep", text(&experiment), "--out", text(&out), "--dry-run", "--json"]);
    let counts: serde_json::Value = serde_json::from_str(&counts).unwrap();
    assert_eq!(counts["total"]["images"], 9, "a video of nine frames counts once, and those of base size besides");
    write("frames: 9", "{list: real.npy}");
    refused(&sweep, "expected {source: emoji, images: N}, {folder: DIR} of videos");
    write("frames: 9\nfps: 5", "{folder: real.npy}");
    succeed(&sweep);

    let results = std::fs::read_to_string(out.join("results.csv")).unwrap();
    let header = results.lines().next().unwrap();
    for column in ["fvd_r", "kvd_r", "frame_difference_r", "flicker_r", "fvd_b", "d_fvd_r", "d_fvd_r_verdict", "d_flicker_r"] {
        assert!(header.split(',').any(|name| name == column), "{column}: {header}");
    }
    let page = std::fs::read_to_string(out.join("report/index.html")).unwrap();
    assert_eq!(page.matches("data:image/webp;base64,").count(), 6, "every sample plays");
    let whole = files(&out);

    // A video that is lost or damaged is made again, to the byte.
    let cell = out.join("cells/tiny/0.25x-other/images");
    let damaged = cell.join("000001.png");
    let bytes = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::remove_file(cell.join("000002.png")).unwrap();
    succeed(&sweep);
    assert_eq!(files(&out), whole);

    // The same numbers from the files alone.
    let (real, network) = (dir.path().join("real.npy"), dir.path().join("i3d.safetensors"));
    let score = |more: &[&str]| {
        let all = ["score", "--fake", text(&cell), "--real", text(&real), "--frames", "9", "--json"];
        let found = succeed(&all.iter().chain(more).copied().collect::<Vec<_>>());
        serde_json::from_str::<serde_json::Value>(&found).unwrap()
    };
    let row = results.lines().find(|line| line.contains(",other,")).unwrap();
    let of = |column: &str| -> f64 {
        let at = header.split(',').position(|name| name == column).unwrap();
        row.split(',').nth(at).unwrap().parse().unwrap()
    };
    let found = score(&["--extractor", text(&network)]);
    for (metric, column) in [("fvd", "fvd_r"), ("kvd", "kvd_r")] {
        let value = found[metric]["value"].as_f64().unwrap();
        assert!((value - of(column)).abs() <= 1e-9 * value.abs().max(1.0), "{metric}: {value} and {}", of(column));
    }
    let still = score(&["--metrics", "frame_difference,flicker"]);
    assert!((still["flicker"]["value"].as_f64().unwrap() - of("flicker_r")).abs() < 1e-9);
    let base = ["score", "--fake", text(&cell), "--real", text(&real), "--extractor", text(&network)];
    refused(&[&base[..], &["--metrics", "fid"]].concat(), "fid is a metric of images");
    refused(&base, "too few for clip16");
}

/// The embedded set moves as the captions say, without any files but the networks'.
#[test]
fn emoji_move_in_sweeps_and_data_sets() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(&dir.path().join("tiny"));
    i3d(&dir.path().join("i3d.safetensors"));
    let protocol = "name: videos\ntitle: Videos\nsource: a test of videos\ncompare:\n  \
                    - {id: r, against: reference, network: i3d, metrics: [fvd], clip: {frames: 9}}\n";
    std::fs::write(dir.path().join("videos.yaml"), protocol).unwrap();
    let experiment = dir.path().join("moving.yaml");
    let text_of = "models: {tiny: {path: tiny}}\nmethods: [direct-inf]\nscales: [0.25]\nimages: 3\nframes: 9\n\
                   sampler: {steps: 1, eta: 0}\nprompts: {source: emoji}\nreference: {source: emoji, images: 8}\n\
                   metrics: {protocol: videos.yaml, i3d: i3d.safetensors}\n";
    std::fs::write(&experiment, text_of).unwrap();
    let out = dir.path().join("run");
    let sweep = ["sweep", text(&experiment), "--out", text(&out)];
    let counts = succeed(&[&sweep[..], &["--dry-run", "--json"]].concat());
    let counts: serde_json::Value = serde_json::from_str(&counts).unwrap();
    assert_eq!(counts["total"]["images"], 6, "a video counts once; three are of base size");
    succeed(&sweep);
    let manifest = std::fs::read_to_string(out.join("cells/tiny/0.25x-direct-inf/manifest.jsonl")).unwrap();
    let words = ["moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "spins", "bounces", "blinks"];
    let prompt = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["prompt"].as_str().unwrap().to_owned();
    let prompts: Vec<String> = manifest.lines().map(prompt).collect();
    assert!(prompts.iter().all(|prompt| words.iter().any(|words| prompt.ends_with(words))), "{prompts:?}");
    let page = std::fs::read_to_string(out.join("report/index.html")).unwrap();
    assert_eq!(page.matches("data:image/webp;base64,").count(), 6, "the reference plays above its samples");

    // The reference as folders of frames, which score as the sweep did.
    let results = std::fs::read_to_string(out.join("results.csv")).unwrap();
    let (header, row) = results.split_once('\n').unwrap();
    let of = |column: &str| row.split(',').nth(header.split(',').position(|name| name == column).unwrap()).unwrap();
    let side = of("width");
    let data = |more: &[&str], to: &Path| {
        let all = ["dataset", "--split", "reference", "--frames", "9", "--size", side, "--out", text(to)];
        succeed(&all.iter().chain(more).copied().collect::<Vec<_>>());
    };
    let (pictures, bytes) = (dir.path().join("pictures"), dir.path().join("bytes"));
    data(&["--png", "--views", "8"], &pictures);
    assert_eq!(names(&pictures).len(), 8);
    assert_eq!(names(&pictures.join("000007")).len(), 9);
    let (cell, network) = (out.join("cells/tiny/0.25x-direct-inf/images"), dir.path().join("i3d.safetensors"));
    let arguments = ["score", "--fake", text(&cell), "--real", text(&pictures), "--extractor", text(&network), "--frames", "9", "--json"];
    let found: serde_json::Value = serde_json::from_str(&succeed(&arguments)).unwrap();
    let value: f64 = of("fvd_r").parse().unwrap();
    assert!((found["fvd"]["value"].as_f64().unwrap() - value).abs() <= 1e-9 * value, "{found} and {value}");

    data(&["--views", "1"], &bytes);
    assert_eq!(names(&bytes), ["captions.tsv", "dataset.json", "images.u8", "names.tsv"]);
    let captions = std::fs::read_to_string(bytes.join("captions.tsv")).unwrap();
    let n = captions.lines().count();
    assert!(prompts.iter().all(|prompt| captions.lines().any(|line| line.ends_with(&format!("\t{prompt}")))));
    assert_eq!(std::fs::metadata(bytes.join("images.u8")).unwrap().len(), n as u64 * 9 * 3 * side.parse::<u64>().unwrap().pow(2));
    refused(&["dataset", "--split", "train", "--frames", "0", "--out", text(&bytes)], "--frames: expected 1 to");
}

/// The motion modules and the I3D that travel in the program.
#[test]
fn the_pocket_checkpoint_moves() {
    let dir = tempfile::tempdir().unwrap();
    let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    let (checkpoint, adapter) = (datasets.join("pocket"), datasets.join("pocket-motion"));
    let out = dir.path().join("cat");
    let all = ["generate", "--checkpoint", text(&checkpoint), "--motion-adapter", text(&adapter), "--frames", "2", "--size", "64x64"];
    succeed(&[&all[..], &["--prompt", "cat face moves left", "--steps", "2", "--eta", "0", "--out", text(&out)]].concat());
    assert_eq!(names(&out), ["000000.png", "000001.png"]);
    let size: u64 = ["diffusion_pytorch_model.safetensors", "../pocket-i3d/model.safetensors"]
        .iter()
        .map(|file| std::fs::metadata(adapter.join(file)).unwrap().len())
        .sum();
    assert!(size < 10_000_000, "{size}");

    // By its name the experiment finds them in the program.
    let counts = succeed(&["sweep", "video", "--out", text(&dir.path().join("run")), "--dry-run", "--json", "--set", "images=9"]);
    let counts: serde_json::Value = serde_json::from_str(&counts).unwrap();
    let flops = |cell: &str| {
        let cells = counts["cells"].as_array().unwrap();
        let found = cells.iter().find(|found| found["cell"].as_str().unwrap().ends_with(cell)).unwrap();
        found["flops_per_image"].as_f64().unwrap()
    };
    // Sixteen frames of what an image of the pocket model takes, and layers over frames besides.
    let image = succeed(&["sweep", "quick", "--out", text(&dir.path().join("image")), "--dry-run", "--json", "--set", "sampler.steps=6"]);
    let image: serde_json::Value = serde_json::from_str(&image).unwrap();
    let cells = image["cells"].as_array().unwrap();
    let of_image = cells.iter().find(|found| found["cell"].as_str().unwrap().ends_with("/4x-direct-inf")).unwrap();
    let times = flops("/4x-direct-inf") / of_image["flops_per_image"].as_f64().unwrap();
    assert!((16.0..40.0).contains(&times), "{times}");

    let video = dir.path().join("frames");
    succeed(&["dataset", "--split", "reference", "--png", "--frames", "9", "--views", "9", "--out", text(&video)]);
    let i3d = datasets.join("pocket-i3d");
    let found = succeed(&[
        "score",
        "--fake",
        text(&video),
        "--real",
        text(&video),
        "--extractor",
        text(&i3d),
        "--frames",
        "9",
        "--metrics",
        "fvd",
        "--json",
    ]);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert!(found["fvd"]["value"].as_f64().unwrap().abs() < 1e-3, "{found}");
}
