//! Rival methods against their own code, on the tiny models: whole loops, every stage. `scripts/rival_goldens` made the
//! goldens.

use crate::methods::{Method, Settings};
use crate::parity::{check, data, golden, model};
use crate::pipeline::{Injected, Request, SizeConditioning, StageSteps, Trace};
use crate::sampler::ScheduleOptions;
use crate::{Seeding, VaeDecode};
use serde_json::Value;

/// What a golden's run was asked for.
fn spec(name: &str) -> Value {
    let bytes = std::fs::read(data(&format!("rivals/{name}.safetensors"))).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    serde_json::from_str(header["__metadata__"]["spec"].as_str().unwrap()).unwrap()
}

fn plain_request() -> Request {
    Request {
        prompt: String::new(),
        negative_prompt: String::new(),
        width: 256,
        height: 256,
        steps: 50,
        sampler: crate::Sampler::Ddim,
        schedule: ScheduleOptions::default(),
        guidance_scale: 7.5,
        guidance_rescale: 0.0,
        eta: 0.0,
        seed: 0,
        size_conditioning: SizeConditioning::Target,
        vae_decode: VaeDecode::Whole,
        seeding: Seeding::PerImage,
    }
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
        guidance_scale: spec["guidance_scale"].as_f64().unwrap(),
        eta: spec["eta"].as_f64().unwrap(),
        seed: spec["seed"].as_u64().unwrap_or(0),
        ..plain_request()
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
    names.sort_by_key(|name| (name.len(), (*name).clone()));
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

/// HiDiffusion's sites on the layout of SD 1.5 and 2.1.
fn hidiffusion_sd(t1: f64, t2: f64) -> String {
    format!(
        "resized_blocks:
  rules:
    - {{site: down_blocks.0.downsamplers.0.conv, how: downsampler, until: {t1}}}
    - {{site: down_blocks.1.attentions.0, how: average-pool, until: {t2}}}
window_attention: {{sites: ['down_blocks.0.attentions.*.**', 'up_blocks.3.attentions.*.**']}}"
    )
}

/// The same on that of SDXL; means begin with a share of the run where the downsampler's stride ends there.
fn hidiffusion_xl(stride: f64, from: f64, until: f64) -> String {
    format!(
        "resized_blocks:
  rules:
    - {{site: down_blocks.1.attentions.0, how: average-pool, from: {from}, until: {until}}}
    - {{site: down_blocks.1.downsamplers.0.conv, how: downsampler, until: {stride}}}
window_attention:
  sites: ['{{down,up}}_blocks.1.attentions.*.transformer_blocks.{{0,1}}.attn1']"
    )
}

#[test]
fn hidiffusion() {
    check_rival("hidiffusion_sd15", &hidiffusion_sd(0.7, 0.34));
    check_rival("hidiffusion_sdxl", &hidiffusion_xl(0.34, 0.0, 0.7));
}

/// Below 4096 pixels, and a map that has no middle.
#[test]
fn hidiffusion_aggressive() {
    check_rival("hidiffusion_aggressive_sdxl", &hidiffusion_xl(0.16, 0.16, 0.4));
}

#[test]
fn deep_shrink() {
    let settings = "resized_blocks: {rules: [{site: down_blocks.0.downsamplers.0, how: {shrink: 1.7}, until: 0.35}]}";
    check_rival("deep_shrink_sd15", settings);
}

const ENLARGED: &str = "through: latents, filter: bicubic, told_final_size: true, normalised: true";

const DEMOFUSION: &str = "
skip_residual: {exponent: 3}
joint_diffusion: {stride: 0.5, jitter: true, told_corners: true}
dilated_sampling: {exponent: 1, sigma: 0.8}
";

#[test]
fn demofusion() {
    check_rival("demofusion_sdxl", &format!("cascade: {{stages: [{{size: 1, told_final_size: true}}, {{{ENLARGED}}}]}}{DEMOFUSION}"));
}

/// With words of their own in every window.
#[test]
fn accdiffusion() {
    let settings = "
skip_residual: {exponent: 3}
joint_diffusion: {stride: 0.5, jitter: true, held: true, grain: 4, told_corners: true}
window_prompts: {sites: ['down_blocks.2.**', 'up_blocks.0.**'], threshold: 0.49}
dilated_sampling: {exponent: 1, sigma: 0.8, shuffle: true}
";
    check_rival("accdiffusion_sdxl", &format!("cascade: {{stages: [{{size: 1, told_final_size: true}}, {{{ENLARGED}}}]}}{settings}"));
}

/// Three phases, the first of them half as high as the training resolution.
#[test]
fn demofusion_wide() {
    let stages = format!("[{{size: 1, told_final_size: true}}, {{size: 2, {ENLARGED}}}, {{{ENLARGED}}}]");
    let stages = format!("cascade: {{measure: longest-side, stages: {stages}}}");
    check_rival("demofusion_wide_sdxl", &format!("{stages}{DEMOFUSION}"));
}

/// Every method that is shipped, for every model and scale that its file lists: its rules match, and its stages and steps fit the
/// size. The tiny models have the layouts of the real ones.
#[test]
fn shipped_methods_plan_every_size_they_list() {
    let folder = data("../../../../experiments/methods");
    let mut n_plans = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        let spec = crate::MethodSpec::parse(&text, &file).unwrap();
        let written: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
        for variant in written["variants"].as_sequence().unwrap() {
            let listed = |key: &str| variant.get(key).and_then(|list| list.as_sequence().cloned());
            let models = listed("models").map(|list| list.iter().map(|m| m.as_str().unwrap().to_owned()).collect());
            let models: Vec<String> = models.unwrap_or_else(|| ["sd15", "sd21", "sd21-768", "sdxl", "pocket"].map(String::from).into());
            let scales = listed("scales").map(|list| list.iter().map(|s| s.as_f64().unwrap()).collect());
            let scales: Vec<f64> = scales.unwrap_or_else(|| vec![4.0, 6.25, 8.0, 16.0]);
            for (model, scale) in models.iter().flat_map(|model| scales.iter().map(move |scale| (model, *scale))) {
                let pipeline = crate::parity::model(match model.as_str() {
                    "pocket" => "sd15",
                    "sd21-768" => "sd21",
                    name => name,
                });
                let method = spec.resolve(model, scale, pipeline.sites()).unwrap();
                let (native, _) = pipeline.native_size();
                let side = |factor: f64| (f64::from(native) * factor).round() as u32;
                let (height, width) = if scale == 8.0 { (side(2.0), side(4.0)) } else { (side(scale.sqrt()), side(scale.sqrt())) };
                let request = Request { width, height, ..plain_request() };
                let outline = pipeline.outline(&request, &method).unwrap_or_else(|e| panic!("{model} at {scale}×: {e}"));
                let last = outline.last().unwrap();
                assert_eq!(
                    (last.stage.latent.0 as u32 * pipeline.vae_factor(), last.stage.latent.1 as u32 * pipeline.vae_factor()),
                    (height, width)
                );
                for StageSteps { stage, steps } in &outline {
                    assert!(!steps.is_empty() && stage.latent.0 % 8 == 0 && stage.latent.1 % 8 == 0, "{}: {:?}", spec.name(), stage.latent);
                }
                let acts = outline.len() > 1 || outline[0].steps.iter().any(|step| !step.is_plain());
                assert!(acts || spec.name() == "direct-inf", "{} does nothing for {model} at {scale}×", spec.name());
                n_plans += 1;
            }
        }
    }
    assert!(n_plans > 100, "{n_plans}");
}
