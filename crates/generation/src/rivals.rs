//! Rival methods against their own code, on the tiny models: whole loops, every stage. `scripts/rival_goldens` made the
//! goldens.

use crate::journey::{Route, Stage};
use crate::methods::{Method, MethodSpec, Settings};
use crate::parity::{check, data, golden, model};
use crate::pipeline::{Injected, Request, SizeConditioning, Trace};
use crate::sampler::ScheduleOptions;
use crate::step::{Moment, Region};
use crate::{Seeding, VaeDecode};
use serde_json::Value;

/// What a golden's run was asked for.
fn spec(name: &str) -> Value {
    let bytes = std::fs::read(data(&format!("rivals/{name}.safetensors"))).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    serde_json::from_str(header["__metadata__"]["spec"].as_str().unwrap()).unwrap()
}

fn request(spec: &Value) -> Request {
    let text = |key: &str| spec[key].as_str().unwrap().to_owned();
    Request {
        prompt: text("prompt"),
        negative_prompt: text("negative_prompt"),
        width: spec["width"].as_u64().unwrap() as u32,
        height: spec["height"].as_u64().unwrap() as u32,
        steps: spec["steps"].as_u64().unwrap() as usize,
        sampler: spec["sampler"].as_str().unwrap().parse().unwrap(),
        schedule: ScheduleOptions::default(),
        guidance_scale: spec["guidance_scale"].as_f64().unwrap(),
        guidance_rescale: 0.0,
        eta: spec["eta"].as_f64().unwrap(),
        seed: spec["seed"].as_u64().unwrap_or(0),
        size_conditioning: SizeConditioning::Target,
        vae_decode: VaeDecode::Whole,
        seeding: Seeding::PerImage,
    }
}

/// Runs a method of these settings on a golden's noise and compares the latents of every stage.
#[track_caller]
fn check_rival(name: &str, settings: &str) {
    let (spec, mut want) = (spec(name), golden(&format!("rivals/{name}")));
    let pipeline = model(spec["model"].as_str().unwrap());
    let settings: Settings = serde_yaml::from_str(settings).unwrap();
    let method = Method::new(name, settings, pipeline.sites()).unwrap();
    let draws = (0..).map_while(|k| want.remove(&format!("draws.{k}"))).collect();
    let mut trace = Trace::default();
    pipeline.generate_with(&request(&spec), &method, &Injected { draws, ..Injected::default() }, Some(&mut trace)).unwrap();
    let last = want.keys().filter_map(|k| k.strip_prefix("stage")?.split('.').next()?.parse::<usize>().ok()).max().unwrap();
    let mut names: Vec<&String> = want.keys().collect();
    // In the order in which a difference would arise.
    names.sort_by_key(|name| (*name == "final_latents", name.len(), (*name).clone()));
    assert!(names.len() >= 4, "{name}: only {} tensors to compare", names.len());
    for key in names {
        let ours = key.strip_prefix(&format!("stage{last}.")).unwrap_or(key);
        check(&format!("{name} {key}"), &trace.tensors[ours], &want[key]);
    }
}

#[test]
fn multidiffusion() {
    check_rival("multidiffusion_sd15", "joint_diffusion: {stride: 0.375}");
}

#[test]
fn self_cascade() {
    let settings = "cascade: {of_steps: 10, stages: [{size: 1}, {through: latents, filter: bilinear, first: 3}]}";
    check_rival("self_cascade_sdxl", settings);
}

#[test]
fn upsample_guidance() {
    check_rival("upsample_guidance_sd15", "upsample_guidance: {theta: 0.8, eta: 0.5}");
}

#[test]
fn fouriscale() {
    let freeu = "freeu: {trigger: channels, b1: 1.2, b2: 1.4, s1: 0.9, s2: 0.2}";
    let sites = r#"
  filtered: ["down_blocks.{2,3}.**", "mid_block.**", "up_blocks.{0,1,2}.resnets.**"]
  dilated: ["up_blocks.{0,1,2}.upsamplers.**"]"#;
    check_rival("fouriscale_sd15", &format!("{freeu}\nfouriscale:\n  start: 2\n  stop: 4\n  of_steps: 5{sites}"));
    check_rival("fouriscale_sd15_padded", &format!("{freeu}\nfouriscale:\n  start: 1\n  stop: 4\n  of_steps: 5{sites}"));
    let xl = r#"
freeu: {trigger: channels, b1: 1.1, b2: 1.2, s1: 0.6, s2: 0.4}
fouriscale:
  start: 2
  stop: 4
  of_steps: 5
  filtered: ["down_blocks.2.**", "mid_block.**", "up_blocks.{0,1}.resnets.**"]
  dilated: ["up_blocks.0.upsamplers.**"]
  floor: 0.6
  weak_divisor: 1.5
  base: bucket
  amplified_guidance: 2.4"#;
    check_rival("fouriscale_sdxl", xl);
}

#[test]
fn freescale() {
    for (name, strided) in [("freescale_sdxl", false), ("freescale_sdxl_fast", true)] {
        let settings = r#"
freeu: {trigger: channels, b1: 1.1, b2: 1.2, s1: 0.6, s2: 0.4}
cascade:
  of_steps: 5
  stages:
    - {size: 1, plain: false}
    - {through: unclamped-pixels, filter: bicubic, encode: sample, first: 2, told_first_size: true}
skip_residual: {exponent: 2}
restrained_dilation: {tau: 4, of_steps: 5, sites: ["down_blocks.1.downsamplers.**", "down_blocks.2.**", "mid_block.**"]}"#;
        check_rival(name, &format!("{settings}\nscale_fusion: {{sigma: 1, strided: {strided}}}"));
    }
}

#[test]
fn fam() {
    let settings = r#"
cascade: {of_steps: 4, stages: [{size: 1}, {through: latents, filter: bicubic}]}
frequency_modulation: {cutoff: 0.5}
attention_modulation: {share: 0.7, sites: ["up_blocks.0.**"]}"#;
    check_rival("fam_sdxl", settings);
}

/// The moment of step `i` of 50, in stage `s`.
fn moment(route: &Route, stages: &[Stage], s: usize, i: usize) -> Moment {
    Moment {
        step: i - stages[s].steps.first.min(i),
        index: i,
        n_steps: 50,
        n_run: 50,
        timestep: 981.0 - 20.0 * i as f64,
        latent: stages[s].latent,
        native: route.native,
        guidance_scale: route.guidance_scale,
        stage: s,
        n_stages: stages.len(),
        previous: s.checked_sub(1).map(|before| stages[before].latent),
        seed: 1,
        level: (0.6, 0.8),
        alphas_cumprod: (0..1000).map(|t| 0.999 - f64::from(t) / 1001.0).collect(),
    }
}

/// Every shipped method can be planned for each model and scale that it lists: its rules match, its stages end at the image's size, and each
/// view's weights sum to 1.
#[test]
fn shipped_methods_plan_what_they_list() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/methods");
    let families = [("sd15", "sd15", 64), ("pocket", "sd15", 16), ("sd21", "sd21", 64), ("sd21-768", "sd21", 96), ("sdxl", "sdxl", 128)];
    let sides = [(4.0, 2.0, 2.0), (6.25, 2.5, 2.5), (8.0, 2.0, 4.0), (16.0, 4.0, 4.0)];
    let mut planned = 0;
    for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let (spec, listed) = (MethodSpec::parse(&text, &file).unwrap(), serde_yaml::from_str::<serde_yaml::Value>(&text).unwrap());
        let lists = |key: &str, wanted: &dyn Fn(&serde_yaml::Value) -> bool| {
            let variants = listed["variants"].as_sequence().unwrap().iter();
            variants.filter(|v| v.get(key).is_none_or(|list| list.as_sequence().unwrap().iter().any(wanted))).cloned().collect::<Vec<_>>()
        };
        for (family, tiny, side) in families {
            for (scale, down, across) in sides {
                let of_family = lists("models", &|model| model.as_str() == Some(family));
                let of_scale = lists("scales", &|number| number.as_f64() == Some(scale));
                if !of_family.iter().any(|variant| of_scale.contains(variant)) {
                    continue;
                }
                let sites = model(tiny).sites();
                let method = spec.resolve(family, scale, sites).unwrap_or_else(|e| panic!("{family} {scale}: {e}"));
                let native = (side, side);
                let latent = ((side as f64 * down) as usize, (side as f64 * across) as usize);
                method.check(latent, native).unwrap();
                let route = Route { latent, native, n_steps: 50, n_train: 1000, guidance_scale: 7.5 };
                let stages = method.journey(&route).stages;
                assert_eq!(stages.last().unwrap().latent, latent);
                for (s, i) in (0..stages.len()).flat_map(|s| [(s, stages[s].steps.first), (s, 49)]) {
                    let step = method.step(sites, &moment(&route, &stages, s, i));
                    for view in step.views {
                        let sum: f64 = view.passes.iter().map(|pass| pass.weight).sum();
                        assert!(
                            (sum - 1.0).abs() < 1e-9 || matches!(view.region, Region::Pooled(_)),
                            "{} {family} {scale}: {sum}",
                            spec.name()
                        );
                    }
                }
                planned += 1;
            }
        }
    }
    assert!(planned >= 10 * 20, "{planned}");
}
