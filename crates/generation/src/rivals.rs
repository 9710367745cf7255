//! Rival methods against their own code, on the tiny models: whole loops, every stage. `scripts/rival_goldens` made the
//! goldens.

use crate::journey::Steps;
use crate::methods::{Method, MethodSpec, Settings};
use crate::parity::{check, data, folder, golden, model};
use crate::pipeline::{Injected, Pipeline, Request, SizeConditioning, Trace, Upscaler};
use crate::sampler::{Sampler, Schedule, ScheduleOptions};
use crate::{LoadOptions, Seeding, VaeDecode};
use serde_json::Value;
use std::sync::{Arc, OnceLock};

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
        frames: 1,
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

#[test]
fn megafusion() {
    let stages = "stages: [{size: 1, end: 6, hands_on: late-estimate},
        {size: 1.5, first: 6, end: 8, encode: sample, hands_on: late-estimate}, {first: 8, encode: sample, hands_on: late-estimate}]";
    check_rival("megafusion_sd15", &format!("cascade: {{of_steps: 10, {stages}}}"));
}

#[test]
fn megafusion_pp() {
    let dilation = "redilation: {tau: 10, of_steps: 10, dilation: {\"mid_block.resnets.**\": 2}}";
    let stages = "stages: [{size: 1, end: 4, hands_on: late-estimate, plain: false},
        {size: 1.5, first: 4, end: 7, noised_for: 6, gamma: 2.25, encode: sample, hands_on: late-estimate},
        {first: 7, noised_for: 9, gamma: 4, encode: sample, hands_on: late-estimate}]";
    check_rival("megafusion_pp_sd15", &format!("cascade: {{of_steps: 10, {stages}}}\n{dilation}"));
    let stages = "stages: [{size: 1, end: 5, hands_on: late-estimate, plain: false},
        {first: 5, noised_for: 9, gamma: 4, encode: sample, hands_on: late-estimate}]";
    check_rival("megafusion_pp_sdxl", &format!("cascade: {{of_steps: 10, {stages}}}\n{dilation}"));
}

#[test]
fn rectified_hr() {
    check_rival(
        "rectified_hr_sdxl",
        "noise_refresh: {sizes: 3, first_end: 6, of_steps: 10, step_exponent: 0.5, guidance: [5, 30], guidance_exponent: 0.5}",
    );
}

/// A run in which the signal-to-noise ratio is divided by γ (MegaFusion, equation 8).
#[test]
fn gamma_divides_the_signal_to_noise_ratio() {
    let schedule = Schedule::open(&data("models/tiny-sd15/scheduler/scheduler_config.json")).unwrap();
    let alphas = |gamma: f64| {
        let stage = Steps { gamma, ..Steps::default() };
        schedule.walk_stage(Sampler::Ddim, 10, 0.0, &ScheduleOptions::default(), &stage).unwrap().alphas_cumprod()
    };
    let ratio = |a: f64| a / (1.0 - a);
    for (plain, shifted) in alphas(1.0).iter().zip(alphas(4.0).iter()) {
        assert!((ratio(*plain) / ratio(*shifted) - 4.0).abs() < 1e-6);
    }
}

/// The solvers go where a stage's own timesteps lead.
#[test]
fn stages_may_bring_their_timesteps() {
    let schedule = Schedule::open(&data("models/tiny-sd15/scheduler/scheduler_config.json")).unwrap();
    let stage = Steps { timesteps: Some((vec![700, 400, 100], 300)), ..Steps::default() };
    for sampler in [Sampler::Ddim, Sampler::Ddpm, Sampler::Euler, Sampler::EulerAncestral, Sampler::DpmPp2m, Sampler::UniPc] {
        let walk = schedule.walk_stage(sampler, 50, 0.0, &ScheduleOptions::default(), &stage).unwrap();
        assert_eq!(walk.timesteps(), [700.0, 400.0, 100.0], "{sampler}");
        let (alphas, (signal, spread)) = (walk.alphas_cumprod(), walk.level(1));
        assert!((signal * signal / (signal * signal + spread * spread) - alphas[400]).abs() < 1e-6, "{sampler}");
    }
    let refused = |sampler, karras: Option<bool>| {
        let options = ScheduleOptions { use_karras_sigmas: karras, ..ScheduleOptions::default() };
        schedule.walk_stage(sampler, 50, 0.0, &options, &stage).unwrap_err().to_string()
    };
    assert!(refused(Sampler::Pndm, None).contains("this method says which timesteps"));
    assert!(refused(Sampler::Euler, Some(true)).contains("use_karras_sigmas"));
}

/// The pieces of this method write out the same stages as its rule.
#[test]
fn rectified_hr_as_a_cascade() {
    let stages = "stages: [{size: 1, end: 6, hands_on: estimate, guidance_scale: 5},
        {size: 1.5, first: 6, end: 8, hands_on: estimate, guidance_scale: 22.67766952966369}, {first: 8, guidance_scale: 30}]";
    check_rival("rectified_hr_sdxl", &format!("cascade: {{of_steps: 10, {stages}}}"));
}

#[test]
fn diffuse_high() {
    let later = "first: 3, filter: bicubic, unclamped: true, sharpen: {taps: 3, sigma: [0.1, 2], amount: 1}, guidance_scale: 10,
        told_trained_size: true";
    let stages = format!("stages: [{{size: 1}}, {{size: 1.5, {later}}}, {{{later}}}]");
    check_rival("diffuse_high_sdxl", &format!("cascade: {{of_steps: 8, {stages}}}\nstructure_guidance: {{steps: 2, of_steps: 8}}"));
}

#[test]
fn frecas() {
    let stages = "stages: [{size: 1, steps: 5, end: 300}, {size: 1.5, steps: 3, end: 200}, {steps: 3, end: 0}]";
    let guidance = "frequency_guidance: {high: 4, low: 2}";
    check_rival("frecas_sd21", &format!("shifted_cascade: {{gamma: 3, {stages}}}\n{guidance}\nmap_reuse: {{weight: 0.4}}"));
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

/// The methods that are shipped.
fn shipped() -> Vec<MethodSpec> {
    let files = std::fs::read_dir(folder().join("../../experiments/methods")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    files.iter().map(|file| MethodSpec::parse(&std::fs::read_to_string(file).unwrap(), file).unwrap()).collect()
}

fn pocket() -> &'static Pipeline {
    static POCKET: OnceLock<Pipeline> = OnceLock::new();
    POCKET.get_or_init(|| {
        let datasets = folder().join("../../datasets");
        let mut pipeline = Pipeline::load(&datasets.join("pocket")).unwrap();
        let upscaler = Upscaler::load_with(&datasets.join("pocket-upscaler"), &LoadOptions::default()).unwrap();
        pipeline.lend_upscaler("scalebench:datasets/pocket-upscaler", Arc::new(upscaler));
        pipeline
    })
}

/// A run at `scale` times the pixels, in two squares beside each other for 8.
fn at_scale(pipeline: &Pipeline, scale: f64, sampler: Sampler, steps: usize) -> Request {
    let (side, factor) = (f64::from(pipeline.native_size().0), if scale == 8.0 { (4.0, 2.0) } else { (scale.sqrt(), scale.sqrt()) });
    Request {
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: (side * factor.0) as u32,
        height: (side * factor.1) as u32,
        steps,
        sampler,
        schedule: ScheduleOptions::default(),
        guidance_scale: 3.5,
        guidance_rescale: 0.0,
        eta: 0.0,
        seed: 3,
        size_conditioning: SizeConditioning::Target,
        vae_decode: VaeDecode::Whole,
        seeding: Seeding::PerImage,
        frames: 1,
    }
}

/// At every model and scale that they list, in long and short runs, all stages have steps and do not shrink.
#[test]
fn shipped_methods_resolve_where_they_say() {
    for spec in shipped() {
        for (models, scales) in spec.covers() {
            let all = ["sd15", "sd21", "sd21-768", "sdxl", "pocket"].map(str::to_owned);
            for (family, scale) in
                models.unwrap_or(&all).iter().flat_map(|family| scales.unwrap_or(&[4.0]).iter().map(move |s| (family, *s)))
            {
                let pipeline = match family.as_str() {
                    "pocket" => pocket(),
                    // Its layers over pixels have the same names.
                    "modelscope" => model("sd21"),
                    family => model(family.trim_end_matches("-768")),
                };
                let method = spec.resolve(family, scale, pipeline.sites()).unwrap();
                for (sampler, steps) in [(Sampler::Ddim, 50), (Sampler::Ddim, 10), (Sampler::DpmPp2m, 12), (Sampler::DpmPp2m, 4)] {
                    let request = at_scale(pipeline, scale, sampler, steps);
                    let at = format!("{} for {family} at {scale}x with {sampler} in {steps} steps", spec.name());
                    let stages = pipeline.outline(&request, &method).unwrap_or_else(|error| panic!("{at}: {error}"));
                    assert!(stages.iter().all(|stage| !stage.steps.is_empty()), "{at}");
                    let sizes: Vec<(usize, usize)> = stages.iter().map(|stage| stage.stage.latent).collect();
                    assert!(sizes.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1), "{at}: {sizes:?}");
                    for view in stages.iter().flat_map(|stage| &stage.steps).flat_map(|step| &step.views) {
                        let sum: f64 = view.passes.iter().map(|pass| pass.weight).sum();
                        assert!((sum - 1.0).abs() < 1e-9, "{at}: passes that weigh {sum}");
                    }
                    let vae = pipeline.vae_factor();
                    let ending = pipeline.ending(&request, &method).unwrap();
                    let (width, height) = ending.map_or((request.width, request.height), |ending| ending.from);
                    assert_eq!(sizes[sizes.len() - 1], ((height / vae) as usize, (width / vae) as usize), "{at}");
                }
            }
        }
    }
}

/// Images of the pocket model at 4×, in a few steps.
#[test]
fn shipped_methods_run_on_pocket() {
    let pipeline = pocket();
    for spec in shipped() {
        let Ok(method) = spec.resolve("pocket", 4.0, pipeline.sites()) else { continue };
        let image = pipeline.generate(&at_scale(pipeline, 4.0, Sampler::DpmPp2m, 3), &method, None).unwrap();
        let spread = image.data.iter().max().unwrap() - image.data.iter().min().unwrap();
        assert!(spread > 20, "{}: {spread}", spec.name());
    }
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
