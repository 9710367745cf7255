//! Experiment files, methods, protocols, prompts.

use std::path::Path;

use crate::{Bench, Case, inception, text, tiny};

/// An experiment of seconds, without the keys that `more` has.
fn experiment(more: &str) -> String {
    let own = |key: &str| more.lines().any(|line| line.starts_with(&format!("{key}:")));
    let lines = [
        format!("models: {{tiny: {{path: {}, family: sd15}}}}", tiny().display()),
        "methods: [direct-inf]".to_owned(),
        "scales: [0.25]".to_owned(),
        "images: 3".to_owned(),
        "sampler: {steps: 2}".to_owned(),
        "reference: {source: emoji, images: 6}".to_owned(),
        format!("metrics: {{protocol: scalecrafter, extractor: {}}}", inception().display()),
    ];
    let kept = lines.into_iter().filter(|line| !own(line.split(':').next().unwrap()));
    kept.chain([more.to_owned()]).collect::<Vec<_>>().join("\n") + "\n"
}

fn sweep(bench: &Bench, text_of: &str, names: &[&str]) -> Case {
    let file = bench.file("broken.yaml", text_of);
    let out = bench.folder().join("out");
    let names: Vec<&str> = ["broken.yaml"].into_iter().chain(names.iter().copied()).collect();
    Case::new(&["sweep", text(&file), "--out", text(&out)], &names).writes(&out)
}

/// A line of the experiment and what the error names beside the file.
const LINES: &[(&str, &[&str])] = &[
    ("images: 1000000000000000000", &["images", "1000000000000000000"]),
    ("images: 1000001", &["images", "1000000"]),
    ("images: 0", &["images", "0"]),
    ("images: 2", &["images", "2"]),
    ("images: -3", &["images"]),
    ("images: 3.5", &["images"]),
    ("images: many", &["images"]),
    ("images: [3]", &["images"]),
    ("images: {4: 3}", &["images", "4"]),
    ("images: {}", &["images"]),
    ("frames: 0", &["frames", "0"]),
    ("frames: -1", &["frames"]),
    ("frames: 4", &["metrics.protocol", "scalecrafter", "frames is 4"]),
    ("fps: 8", &["fps", "frames"]),
    ("models: {tiny: {path: nowhere, motion_adapter: 3}}", &["models.tiny.motion_adapter"]),
    ("images: {0.25: 1000000000000000000}", &["images"]),
    ("scales: []", &["scales"]),
    ("scales: [0]", &["scales", "0"]),
    ("scales: [-4]", &["scales", "-4"]),
    ("scales: [.nan]", &["scales"]),
    ("scales: [.inf]", &["scales"]),
    ("scales: [1.0e+12]", &["scales"]),
    ("scales: [1.0e-12]", &["scales"]),
    ("scales: [4, 4]", &["scales", "twice"]),
    ("scales: [{factor: 4, width: -2, height: -2}]", &["scales"]),
    ("scales: [{factor: 4, width: 0, height: 0}]", &["scales"]),
    ("scales: [{factor: .nan, width: 1, height: 1}]", &["scales"]),
    ("scales: [{factor: 4}]", &["scales", "width"]),
    ("scales: [four]", &["scales"]),
    ("scales: 4", &["scales"]),
    ("seed: -1", &["seed"]),
    ("seed: x", &["seed"]),
    ("seed: 18446744073709551616", &["seed"]),
    ("question: [3]", &["question"]),
    ("models: {}", &["models"]),
    ("models: {tiny: {path: nowhere}}", &["models.tiny.path", "nowhere"]),
    ("models: {tiny: {path: 3}}", &["models.tiny.path"]),
    ("models: {tiny: {}}", &["models.tiny.path"]),
    ("models: {../tiny: nowhere}", &["models", "../tiny"]),
    ("models: {tiny: [x]}", &["models.tiny"]),
    ("models: 3", &["models"]),
    ("methods: []", &["methods"]),
    ("methods: [nowhere.yaml]", &["methods", "nowhere.yaml"]),
    ("methods: [directinf]", &["methods", "did you mean `direct-inf`?"]),
    ("methods: [direct-inf, direct-inf]", &["methods", "twice"]),
    ("methods: [3]", &["methods"]),
    ("methods: direct-inf", &["methods"]),
    ("methods: [{images: a.png, name: mine}]", &["methods", "a.png"]),
    ("methods: [{images: \"{index}.png\"}]", &["methods", "name"]),
    ("methods: [direct-inf, {images: \"nowhere/{index}.png\", name: mine}]", &["methods", "mine"]),
    ("methods: [direct-inf, {images: \"nowhere/{index}.png\", name: ../mine}]", &["methods", "../mine"]),
    ("methods: [{method: direct-inf, images: x}]", &["methods"]),
    ("methods: [{method: direct-inf, set: {freeu: 3}, label: x}]", &["methods", "freeu"]),
    ("methods: [{method: direct-inf, set: {sampler.steps: 0}}]", &["steps"]),
    ("methods: [{method: direct-inf, label: ../x, set: {sampler.eta: 0}}]", &["methods", "../x"]),
    ("matrix: {sampler.steps: []}", &["matrix", "sampler.steps"]),
    ("matrix: {sampler.steps: [1, 1]}", &["matrix", "twice"]),
    ("matrix: {sampler.steps: [0]}", &["steps"]),
    ("matrix: {sampler.steps: 3}", &["matrix"]),
    ("matrix: {steps: [1]}", &["matrix.steps"]),
    ("matrix: {seed: [-1]}", &["seed"]),
    ("matrix: {methods.none.x: [1]}", &["matrix.methods.none"]),
    ("matrix: {models.none.dtype: [f32]}", &["matrix.models.none"]),
    ("matrix: {models.tiny.family: [dogs]}", &["models.tiny.family", "dogs"]),
    ("sampler: {steps: 0}", &["steps", "0"]),
    ("sampler: {steps: 1001}", &["steps", "1001"]),
    ("sampler: {steps: 18446744073709551615}", &["steps"]),
    ("sampler: {steps: -1}", &["sampler.steps"]),
    ("sampler: {steps: x}", &["sampler.steps"]),
    ("sampler: {name: dimm}", &["sampler.name", "dimm"]),
    ("sampler: {name: 3}", &["sampler.name"]),
    ("sampler: {eta: 2}", &["eta", "2"]),
    ("sampler: {eta: -1}", &["eta", "-1"]),
    ("sampler: {eta: .nan}", &["eta"]),
    ("sampler: {guidance_scale: -1}", &["guidance_scale", "-1"]),
    ("sampler: {guidance_scale: .inf}", &["guidance_scale"]),
    ("sampler: {guidance_scale: x}", &["sampler.guidance_scale"]),
    ("sampler: {guidance_rescale: 2}", &["guidance_rescale", "2"]),
    ("sampler: {timestep_spacing: even}", &["sampler.timestep_spacing"]),
    ("sampler: {use_karras_sigmas: 3}", &["sampler.use_karras_sigmas"]),
    ("sampler: {use_karras_sigmas: true}", &["use_karras_sigmas"]),
    ("sampler: {rescale_betas_zero_snr: true}", &["rescale_betas_zero_snr"]),
    ("sampler: {size_conditioning: none}", &["sampler.size_conditioning"]),
    ("sampler: {vae_decode: part}", &["sampler.vae_decode"]),
    ("sampler: {seed_once_per_batch_of: 0}", &["sampler.seed_once_per_batch_of"]),
    ("sampler: {seed_once_per_batch_of: 1000000000000}", &["sampler.seed_once_per_batch_of"]),
    ("sampler: {jpeg_quality: 0}", &["sampler.jpeg_quality"]),
    ("sampler: {jpeg_quality: 300}", &["sampler.jpeg_quality"]),
    ("sampler: {negative_prompt: [x]}", &["sampler.negative_prompt"]),
    ("sampler: {stps: 3}", &["sampler", "did you mean `steps`?"]),
    ("reference: {}", &["reference"]),
    ("reference: {source: emoji}", &["reference"]),
    ("reference: {source: emoji, images: 1}", &["reference", "1"]),
    ("reference: {source: emoji, images: 1000000000000000000}", &["reference", "images"]),
    ("reference: {source: cats, images: 6}", &["reference.source"]),
    ("reference: {folder: nowhere}", &["reference", "nowhere"]),
    ("reference: {list: nowhere.txt}", &["reference", "nowhere.txt"]),
    ("reference: {parquet: nowhere.parquet}", &["reference", "nowhere.parquet"]),
    ("reference: {shards: \"nowhere/{0..3}.tar\"}", &["reference", "nowhere"]),
    ("reference: {shards: \"{0..999999999}.tar\"}", &["reference", "999999999"]),
    ("reference: {statistics: nowhere.npz}", &["reference", "nowhere.npz"]),
    ("reference: {folder: a, list: b}", &["reference"]),
    ("metrics: {protocol: nowhere}", &["metrics.protocol", "nowhere"]),
    ("metrics: {protocol: nowhere.yaml}", &["metrics.protocol", "nowhere.yaml"]),
    ("metrics: {protocol: scalecrafter}", &["metrics.extractor"]),
    ("metrics: {protocol: scalecrafter, extractor: nowhere}", &["metrics.extractor", "nowhere"]),
    ("metrics: {}", &["metrics", "protocol"]),
    ("prompts: {file: nowhere.txt}", &["prompts", "nowhere.txt"]),
    ("prompts: {source: cats}", &["prompts.source"]),
    ("prompts: {seed: -1}", &["prompts.seed"]),
    ("prompts: {column: x}", &["prompts", "column"]),
    ("base: nowhere.yaml", &["base", "nowhere.yaml"]),
    ("base: [x]", &["base"]),
    ("imags: 3", &["did you mean `images`?"]),
];

/// Files that are no experiments.
const TEXTS: &[(&str, &[&str])] = &[
    ("", &[]),
    ("3", &[]),
    ("[]", &[]),
    ("images: [3", &["line"]),
    ("\u{0}\u{1}", &[]),
    ("a: &a [*a, *a]", &[]),
    // Ten lists of ten lists each, and so on: what YAML calls a bomb.
    (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\n\
         d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e, *e]\n\
         g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f, *f]\nh: [*g, *g, *g, *g, *g, *g, *g, *g, *g, *g]\n",
        &[],
    ),
];

/// Ingredients of a method's only variant, and what the error names beside the method.
const INGREDIENTS: &[(&str, &[&str])] = &[
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": 100000}}", &["redilation.dilation", "100000"]),
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": 1}}", &["redilation.dilation", "mid_block.**"]),
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": 1.0}}", &["redilation.dilation", "mid_block.**"]),
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": 0}}", &["redilation.dilation"]),
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": -2}}", &["redilation.dilation"]),
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": .nan}}", &["redilation.dilation"]),
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": x}}", &["redilation.dilation"]),
    ("redilation: {tau: 50, dilation: {\"nowhere.**\": 2}}", &["nowhere.**"]),
    ("redilation: {tau: 50, dilation: {\"[\": 2}}", &["["]),
    ("redilation: {tau: 50, dilation: {}}", &["redilation.dilation"]),
    ("redilation: {tau: 50, dilation: {\"mid_block.**\": 2, \"mid_block.resnets.**\": 2}}", &["mid_block.**", "mid_block.resnets.**"]),
    ("redilation: {tau: 0, dilation: {\"mid_block.**\": 2}}", &["redilation.tau", "0"]),
    ("redilation: {tau: -1, dilation: {\"mid_block.**\": 2}}", &["redilation.tau", "-1"]),
    ("redilation: {tau: .nan, dilation: {\"mid_block.**\": 2}}", &["redilation.tau"]),
    ("redilation: {tau: 51, dilation: {\"mid_block.**\": 2}}", &["redilation.tau", "51"]),
    ("redilation: {tau: 50, of_steps: 0, dilation: {\"mid_block.**\": 2}}", &["redilation.tau"]),
    ("redilation: {tau: 50, of_steps: -1, dilation: {\"mid_block.**\": 2}}", &["of_steps"]),
    ("redilation: {tau: 50, progressive: 3, dilation: {\"mid_block.**\": 2}}", &["progressive"]),
    ("redilation: {tau: 50, unmatched: [\"mid_block.**\"], dilation: {\"mid_block.**\": 2}}", &["unmatched"]),
    ("redilation: {tau: 50}", &["dilation"]),
    ("redilation: 3", &["redilation"]),
    ("noise_damped_guidance: {tau: 50, dilation: {\"mid_block.**\": 2}}", &["noise_damped_guidance"]),
    (
        "redilation: {tau: 50, dilation: {\"mid_block.**\": 2}}\n    noise_damped_guidance: {tau: 50, dilation: {\"mid_block.**\": 100000}}",
        &["noise_damped_guidance.dilation", "100000"],
    ),
    (
        "redilation: {tau: 50, dilation: {\"mid_block.**\": 2}}\n    dispersion: {tau: 50, sites: [\"mid_block.**\"], transform: {small: 3, large: 5, input: 100000, scale: 1000, eta: 0.05}}",
        &["dispersion.transform", "input"],
    ),
    (
        "redilation: {tau: 50, dilation: {\"mid_block.**\": 2}}\n    dispersion: {tau: 50, sites: [\"mid_block.**\"], transform: {small: 2, large: 5, input: 3, scale: 2, eta: 0.05}}",
        &["dispersion.transform", "small"],
    ),
    ("dispersion: {tau: 50, sites: [\"mid_block.**\"]}", &["dilation"]),
    ("dispersion: {tau: 50, sites: []}", &["dispersion.sites"]),
    ("attention_scale: 3", &["attention_scale"]),
    ("freeu: {trigger: blocks, b1: 0, b2: 1, s1: 1, s2: 1}", &["freeu", "b1"]),
    ("freeu: {trigger: blocks, b1: .nan, b2: 1, s1: 1, s2: 1}", &["freeu", "b1"]),
    ("freeu: {trigger: blocks, b1: 1, b2: 1, s1: 1, s2: 1}", &["freeu"]),
    ("freeu: {trigger: none, b1: 1, b2: 1, s1: 1, s2: 1}", &["trigger"]),
    ("sdedit: {tau: 25, scale: 0}", &["sdedit", "scale"]),
    ("sdedit: {tau: 25, scale: .inf}", &["sdedit", "scale"]),
    ("sdedit: {tau: 50, scale: 2}", &["sdedit", "tau"]),
    ("cascade: {stages: [{size: 1}]}", &["cascade"]),
    ("cascade: {stages: []}", &["cascade"]),
    ("cascade: {stages: [{size: 1000000}, {}]}", &["stage"]),
    ("cascade: {stages: [{size: -1}, {}]}", &["cascade", "size"]),
    ("cascade: {stages: [{size: 1, gamma: 0}, {}]}", &["cascade", "gamma"]),
    ("cascade: {stages: [{size: 1, eta: 7}, {}]}", &["eta", "7"]),
    ("cascade: {stages: [{size: 1}, {sharpen: {taps: 1000001, sigma: [1, 2], amount: 1}}]}", &["cascade", "taps"]),
    ("cascade: {stages: [{size: 1}, {first: 60}]}", &["cascade", "60"]),
    ("cascade: {of_steps: 0, stages: [{size: 1}, {}]}", &["cascade"]),
    ("cascade: {stages: [{size: 1}, {}]}\n    sdedit: {tau: 25, scale: 2}", &["cascade", "sdedit"]),
    ("noise_refresh: {sizes: 1, first_end: 20, guidance: [5, 7]}", &["noise_refresh", "sizes"]),
    ("noise_refresh: {sizes: 1000000000000, first_end: 20, of_steps: 9000000000000, guidance: [5, 7]}", &["noise_refresh", "sizes"]),
    ("noise_refresh: {sizes: 18446744073709551615, first_end: 20, of_steps: 50, guidance: [5, 7]}", &["noise_refresh", "sizes"]),
    ("noise_refresh: {sizes: 2, first_end: 20, guidance: [5, .nan]}", &["noise_refresh"]),
    (
        "shifted_cascade: {gamma: 1, stages: [{size: 1, steps: 1000000000000000000, end: 500}, {steps: 10, end: 1}]}",
        &["shifted_cascade", "steps"],
    ),
    ("shifted_cascade: {gamma: -1, stages: [{size: 1, steps: 10, end: 500}, {steps: 10, end: 1}]}", &["shifted_cascade", "gamma"]),
    ("shifted_cascade: {gamma: 1, stages: [{size: 1, steps: 10, end: 1000}, {steps: 10, end: 1}]}", &["shifted_cascade", "1000"]),
    ("skip_residual: {exponent: 0}", &["skip_residual"]),
    ("skip_residual: {exponent: 3}", &["skip_residual"]),
    ("joint_diffusion: {stride: 0}", &["joint_diffusion", "stride"]),
    ("joint_diffusion: {stride: 2}", &["joint_diffusion", "stride"]),
    ("joint_diffusion: {stride: 0.5, grain: 0}", &["joint_diffusion", "grain"]),
    ("dilated_sampling: {exponent: .inf}", &["dilated_sampling"]),
    ("dilated_sampling: {exponent: 1, sigma: 0}", &["dilated_sampling"]),
    ("upsample_guidance: {theta: 0, eta: 0.6}", &["upsample_guidance", "theta"]),
    ("upsample_guidance: {theta: 1, eta: 2}", &["upsample_guidance", "eta"]),
    ("resized_blocks: {rules: []}", &["resized_blocks", "rules"]),
    ("window_attention: {sites: []}", &["window_attention", "sites"]),
    ("window_prompts: {threshold: 0, sites: []}", &["window_prompts"]),
    ("fouriscale: {start: 20, stop: 10, filtered: [\"mid_block.**\"], dilated: []}", &["fouriscale"]),
    ("restrained_dilation: {tau: 20, sites: []}", &["restrained_dilation"]),
    ("scale_fusion: {sigma: 0}", &["scale_fusion", "sigma"]),
    ("frequency_modulation: {cutoff: 0}", &["frequency_modulation", "cutoff"]),
    ("attention_modulation: {share: 2, sites: [\"mid_block.**\"]}", &["attention_modulation", "share"]),
    ("frequency_guidance: {high: -1, low: 1}", &["frequency_guidance"]),
    ("map_reuse: {weight: 0}", &["map_reuse", "weight"]),
    ("structure_guidance: {steps: 60, weight: 1}", &["structure_guidance"]),
    ("redilatoin: {tau: 50}", &["redilatoin"]),
    ("scales: [x]", &["scales"]),
    ("models: 3", &["models"]),
    ("models: [sdxl]", &["sd15"]),
    ("scales: [4]", &["0.25"]),
];

const METHOD: &str = "name: broken\ntitle: Broken\nsource: a test\n";

/// Files that are no methods.
const METHODS: &[(&str, &[&str])] = &[
    ("", &[]),
    ("name: broken", &["title"]),
    ("name: broken\ntitle: x\nsource: y\nvariants: []", &["variants"]),
    ("name: broken\ntitle: x\nsource: y\nvariants: 3", &["variants"]),
    ("name: [x]\ntitle: x\nsource: y\nvariants: [{}]", &["name"]),
    ("name: broken\ntitle: x\nsource: y\nvariants: [{}]\nmore: 3", &["more"]),
    ("name: broken\ntitle: x\nsource: y\nvariants: [{", &[]),
];

/// The protocol after its head, and what the error names beside the file.
const PROTOCOLS: &[(&str, &[&str])] = &[
    ("compare: []", &["compare"]),
    ("compare: 3", &["compare"]),
    ("compare: [{id: r, against: reference, metrics: []}]", &["metrics"]),
    ("compare: [{id: r, against: reference, metrics: [fdi]}]", &["metrics"]),
    ("compare: [{id: r, against: nobody, metrics: [fid]}]", &["against"]),
    ("compare: [{id: r, against: prompts, metrics: [fid]}]", &["fid"]),
    ("compare: [{id: ../r, against: reference, metrics: [fid]}]", &["../r"]),
    ("compare: [{id: r, against: reference, metrics: [fid]}, {id: r, against: base, metrics: [fid]}]", &["r"]),
    ("compare: [{id: r, against: reference, metrics: [fid], network: resnet}]", &["network"]),
    ("compare: [{id: r, against: reference, metrics: [fid], preprocess: none}]", &["preprocess"]),
    ("compare: [{id: r, against: reference, metrics: [fid], aspect: none}]", &["aspect"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {crops: {count: 0}}}]", &["crops"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {crops: {count: 4000000000}}}]", &["crops"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {crops: {count: -1}}}]", &["crops"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {crops: {count: 1, size: 0}}}]", &["crops"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {crops: {count: 1, size: 4000000000}}}]", &["crops"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {pre_resize: 0}}]", &["pre_resize"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {pre_resize: 4000000000}}]", &["pre_resize"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {pre_resize: x}}]", &["pre_resize"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {jpeg_quality: 0}}]", &["jpeg_quality"]),
    ("compare: [{id: r, against: reference, metrics: [fid], generated: {jpeg_quality: 101}}]", &["jpeg_quality"]),
    ("compare: [{id: r, against: reference, metrics: [fid], other: {jpeg_quality: 300}}]", &["jpeg_quality"]),
    ("compare: [{id: r, against: reference, metrics: [fid]}]\nn_images: {default: -1}", &["n_images"]),
    ("compare: [{id: r, against: reference, metrics: [fid]}]\npublished: nowhere", &["nowhere"]),
    ("compare: [{id: r, against: reference, metrics: [fid]}]\nmore: 3", &["more"]),
];

/// Files of prompts by their names, the rest of `prompts`, and what the error names beside the file.
const PROMPTS: &[(&str, &[u8], &str, &[&str])] = &[
    ("a.txt", b"", "", &["a.txt"]),
    ("a.txt", b"\n \n", "", &["a.txt"]),
    ("a.txt", b"\xff\xfe", "", &["a.txt", "UTF-8"]),
    ("a.txt", b"cat\n", ", column: x", &["a.txt", "column"]),
    ("a.csv", b"", ", column: x", &["a.csv"]),
    ("a.csv", b"id,caption\n", ", column: caption", &["a.csv", "rows"]),
    ("a.csv", b"id,caption\n1,cat\n", "", &["a.csv", "column", "caption"]),
    ("a.csv", b"id,caption\n1,cat\n", ", column: captoin", &["a.csv", "did you mean `caption`?"]),
    ("a.csv", b"id,caption\n1,cat\n2,\n", ", column: caption", &["a.csv", "row 2"]),
    ("a.csv", b"id,caption\n1,cat,3,4\n", ", column: caption", &["a.csv"]),
    ("a.csv", b"id,caption\n1,\"cat\n", ", column: caption", &["a.csv"]),
    ("a.csv", b"id,caption\n1,\xff\xfe\n", ", column: caption", &["a.csv"]),
    ("a.tsv", b"x\n", ", column: y", &["a.tsv", "y"]),
    ("a.parquet", b"PAR1 nothing PAR1", ", column: y", &["a.parquet"]),
    ("a.parquet", b"", ", column: y", &["a.parquet"]),
    ("a.parquet", b"PAR1\xff\xff\xff\x7fPAR1", ", column: y", &["a.parquet"]),
    ("a.jsonl", b"{\"a\": 3}\n", ", column: a", &["a.jsonl", "line 1"]),
    ("a.jsonl", b"{\"a\": \"x\"}\n{\"b\": \"x\"}\n", ", column: a", &["a.jsonl", "line 2"]),
    ("a.jsonl", b"{\"a\": \n", ", column: a", &["a.jsonl", "line 1"]),
    ("a.json", b"[]", "", &["a.json", "COCO"]),
    ("a.json", b"{\"images\": [{\"id\": 1}], \"annotations\": []}", "", &["a.json", "image 1"]),
    ("a.json", b"{\"images\": [{\"id\": -1}], \"annotations\": []}", "", &["a.json"]),
    ("a.tar", b"no archive", "", &["a.tar"]),
    ("a.tar", &[0; 1024], "", &["a.tar"]),
];

pub(crate) fn cases(bench: &Bench) -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(LINES.iter().map(|(line, names)| sweep(bench, &experiment(line), names)));
    cases.extend(TEXTS.iter().map(|(text, names)| sweep(bench, text, names)));
    cases.push(sweep(bench, &format!("question: {}", "[".repeat(100_000)), &[]));
    // A method is tried where most are: an image of the smallest size.
    let generate = |method: &Path, names: Vec<&str>| {
        let out = bench.folder().join("out.png");
        let checkpoint = tiny();
        let args = ["generate", "--checkpoint", text(&checkpoint), "--family", "sd15", "--prompt", "x", "--size", "128x128"];
        let more = ["--steps", "50", "--method", text(method), "--out", text(&out)];
        Case::new(&[&args[..], &more[..]].concat(), &names).writes(&out)
    };
    for (ingredients, names) in INGREDIENTS {
        let file = bench.file("broken.yaml", format!("{METHOD}variants:\n  - {ingredients}\n"));
        cases.push(generate(&file, names.iter().copied().chain(["broken"]).collect()));
    }
    for (text, names) in METHODS {
        let file = bench.file("broken.yaml", text);
        cases.push(generate(&file, names.iter().copied().chain(["broken.yaml"]).collect()));
    }
    for (text_of, names) in PROTOCOLS {
        let protocol = bench.file("protocol.yaml", format!("name: broken\ntitle: Broken\nsource: a test\n{text_of}\n"));
        let metrics = format!("metrics: {{protocol: {}, extractor: {}}}", text(&protocol), inception().display());
        let names: Vec<&str> = names.iter().copied().chain(["metrics.protocol"]).collect();
        cases.push(sweep(bench, &experiment(&metrics), &names));
    }
    for (name, bytes, rest, names) in PROMPTS {
        let file = bench.file(name, bytes);
        let names: Vec<&str> = names.iter().copied().chain(["prompts"]).collect();
        cases.push(sweep(bench, &experiment(&format!("prompts: {{file: {}{rest}}}", text(&file))), &names));
    }
    cases
}
