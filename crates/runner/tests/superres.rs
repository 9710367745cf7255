//! Super-resolution as a method of a sweep, what sees texture, and the study of two of its methods: the built binary, from the outside.

mod common;

use std::path::Path;

use common::{inception, models, scalebench_in, stdout};

#[track_caller]
fn succeed(dir: &Path, args: &[&str]) -> String {
    stdout(&common::succeed(scalebench_in(dir, args)))
}

#[track_caller]
fn fail(dir: &Path, args: &[&str], fragments: &[&str]) {
    common::fail(scalebench_in(dir, args), fragments);
}

/// Three images a cell at twice the trained side, of a filter and of a tiny upscaler.
fn write_experiment(dir: &Path) {
    let text = format!(
        "models: {{tiny: {{path: {}, family: sd15}}}}\nmethods:\n  - upscale-lanczos\n  - {{method: sd-upscale, label: tiny, set: \
         {{upscale.upscaler: {{checkpoint: {}, steps: 1, guidance_scale: 2, reduce: input}}}}}}\nscales: [4]\nimages: 3\nsampler: {{steps: 2}}\n\
         reference: {{source: emoji, images: 4}}\nmetrics: {{protocol: pocket-texture, extractor: {}}}\n",
        models().join("tiny-sd15").display(),
        models().join("tiny-upscaler").display(),
        inception().display(),
    );
    std::fs::write(dir.join("up.yaml"), text).unwrap();
}

#[test]
fn an_upscaler_is_a_method_like_any_other() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    write_experiment(dir);
    let costs = succeed(dir, &["sweep", "up.yaml", "--dry-run", "--json"]);
    let costs: serde_json::Value = serde_json::from_str(&costs).unwrap();
    let cell = |name: &str| costs["cells"].as_array().unwrap().iter().find(|cell| cell["cell"] == name).unwrap().clone();
    let (filter, network) = (cell("tiny/4x-upscale-lanczos"), cell("tiny/4x-sd-upscale_tiny"));
    // Two guided steps at the trained size; the upscaler makes one more, guided as well.
    assert_eq!((&filter["steps"], &filter["passes"], &network["steps"], &network["passes"]), (&2.into(), &4.into(), &3.into(), &6.into()));
    assert!(network["flops_per_image"].as_f64() > filter["flops_per_image"].as_f64());
    assert!(network["seconds_per_image"].as_f64() > filter["seconds_per_image"].as_f64());

    succeed(dir, &["sweep", "up.yaml", "--out", "run"]);
    let results = std::fs::read_to_string(dir.join("run/results.csv")).unwrap();
    let header: Vec<&str> = results.lines().next().unwrap().split(',').collect();
    for column in ["fid_r", "kid_p", "fid_c", "fid_a", "repetition_q", "spectrum_x", "sharpness_x"] {
        let at = header.iter().position(|name| *name == column).unwrap_or_else(|| panic!("{column}: {header:?}"));
        for row in results.lines().skip(1) {
            assert!(row.split(',').nth(at).unwrap().parse::<f64>().is_ok_and(f64::is_finite), "{column}: {row}");
        }
    }
    let description = std::fs::read_to_string(dir.join("run/run.yaml")).unwrap();
    assert!(description.contains("upscalers:"), "the network's digest belongs to the run");
    let page = std::fs::read_to_string(dir.join("run/report/index.html")).unwrap();
    assert!(page.contains("is resized to 512×512 (lanczos)") && page.contains("by a diffusion upscaler that sees 128×128, reduced before"));
    let chart = std::fs::read_to_string(dir.join("run/report/power_x-tiny-4x.svg")).unwrap();
    assert!(["Reference", "Lanczos", "cycles per pixel"].iter().all(|text| chart.contains(text)));
    // The image is the plain one of the trained size, enlarged: the base cell's.
    let image = |path: &str| scalebench_metrics::Image::open(&dir.join("run/cells/tiny").join(path)).unwrap();
    let (small, large) = (image("1x-direct-inf/images/000001.png"), image("4x-upscale-lanczos/images/000001.png"));
    let enlarged = scalebench_metrics::resize::pillow_u8(&(&small).into(), 512, 512, scalebench_metrics::resize::Filter::Lanczos).unwrap();
    assert_eq!(enlarged.pixels.as_flattened(), large.rgb);
    // Another network of the same name is another image.
    fail(
        dir,
        &["sweep", "up.yaml", "--out", "run", "--set", "methods.1.set={upscale.upscaler: {checkpoint: nowhere}}"],
        &["methods", "upscale.upscaler.checkpoint", "nowhere"],
    );
    study(dir);
}

/// The study of the two methods, answered by the key.
fn study(dir: &Path) {
    let blind = ["grid", "run", "--blind", "sd-upscale_tiny,upscale-lanczos", "--out", "study.html"];
    succeed(dir, &blind);
    let (page, key) = (std::fs::read(dir.join("study.html")).unwrap(), std::fs::read_to_string(dir.join("study.key.json")).unwrap());
    let text = String::from_utf8(page.clone()).unwrap();
    for told in ["lanczos", "Lanczos", "sd-upscale", "SD + SR", "scalebench:key"] {
        assert!(!text.contains(told), "the page says {told}");
    }
    succeed(dir, &blind);
    assert_eq!(std::fs::read(dir.join("study.html")).unwrap(), page, "order and sides depend on the seed alone");
    succeed(dir, &[&blind[..], &["--seed", "5", "--key", "other.json"]].concat());
    assert_ne!(std::fs::read(dir.join("study.html")).unwrap(), page);
    let key: serde_json::Value = serde_json::from_str(&key).unwrap();
    let pairs = key["pairs"].as_array().unwrap();
    let indices: std::collections::BTreeSet<u64> = pairs.iter().map(|pair| pair["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2].into(), "every pair once");
    // One voter who always finds the first method, one who always chooses the left.
    let study = key["study"].as_str().unwrap();
    let side = |pair: &serde_json::Value| if pair["a_is_left"] == true { "left" } else { "right" };
    let file = |name: &str, choose: &dyn Fn(&serde_json::Value) -> &'static str| {
        let lines = pairs.iter().enumerate().map(|(i, pair)| format!("{study},{},{},0.5\n", i + 1, choose(pair)));
        std::fs::write(dir.join(name), format!("study,pair,choice,seconds\n{}", lines.collect::<String>())).unwrap();
    };
    file("a.csv", &side);
    file("b.csv", &|_| "left");
    let lefts = pairs.iter().filter(|pair| pair["a_is_left"] == true).count() as u64;
    let found: serde_json::Value =
        serde_json::from_str(&succeed(dir, &["votes", "--json", "--key", "study.key.json", "a.csv", "b.csv"])).unwrap();
    assert_eq!((found["votes"]["wins"].as_u64(), found["votes"]["of"].as_u64()), (Some(3 + lefts), Some(6)));
    assert_eq!(found["voters"]["a.csv"]["rate"], 1.0);
    let said = succeed(dir, &["votes", "--key", "study.key.json", "a.csv"]);
    assert!(said.contains("SD + SR") && said.contains("95% interval") && said.contains("29.2 to 100.0"), "{said}");
    fail(dir, &["votes", "--key", "other.json", "a.csv"], &["a.csv", "line 2", "expected"]);
    fail(dir, &["grid", "run", "--blind", "sd-upscal,upscale-lanczos", "--out", "x.html"], &["no method `sd-upscal`", "did you mean"]);
    fail(dir, &["grid", "run", "--blind", "upscale-lanczos", "--out", "x.html"], &["--blind", "two methods"]);
    fail(dir, &["grid", "run", "--scale", "16", "--out", "x.png"], &["--scale", "16", "4x"]);
    succeed(dir, &["grid", "run", "--out", "grid.png"]);
    assert!(scalebench_metrics::Image::open(&dir.join("grid.png")).unwrap().width > 300);
}
