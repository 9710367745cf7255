//! Rival methods against their own code, on the tiny models: whole loops, every stage. `scripts/rival_goldens` made the
//! goldens.

use crate::methods::{Method, Settings};
use crate::parity::{check, data, golden, model};
use crate::pipeline::{Injected, Request, SizeConditioning, Trace};
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
