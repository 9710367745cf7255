//! Parity with diffusers and with the official ScaleCrafter code on tiny random-weight models of
//! each of the Stable Diffusion 1.5, 2.1 and XL layouts. `tests/data/README.md` says how the arrays were made.

use crate::methods::{Dispersion as DispersionSettings, Method, Redilation, Settings};
use crate::noise::Generator;
use crate::pipeline::{Injected, Pipeline, Request, SizeConditioning, Trace};
use crate::plan::{ConvAction, Dilation, Kernel, Plan};
use crate::sampler::{Sampler, Schedule, ScheduleOptions, Spacing};
use crate::text::ClipTokenizer;
use crate::unet::Told;
use crate::{Dispersion, Dtype, LoadOptions, MethodSpec, disperse};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Largest difference over the reference's root mean square; on a GPU, which sums in its own way, ten times that.
fn tolerance() -> f64 {
    if LoadOptions::default().device.is_cuda() { 1e-3 } else { 1e-4 }
}

/// This crate's folder: where the tests run, if that is another machine than they were built on.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

pub(crate) fn data(path: &str) -> PathBuf {
    folder().join("tests").join("data").join(path)
}

pub(crate) fn golden(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data(&format!("{path}.safetensors")), &Device::Cpu).unwrap()
}

const MODELS: [&str; 3] = ["sd15", "sd21", "sdxl"];

/// The tiny model of a layout, loaded once.
pub(crate) fn model(name: &str) -> &'static Pipeline {
    static PIPELINES: [OnceLock<Pipeline>; 3] = [const { OnceLock::new() }; 3];
    let at = MODELS.iter().position(|m| *m == name).unwrap();
    PIPELINES[at].get_or_init(|| Pipeline::load(&data(&format!("models/tiny-{name}"))).unwrap())
}

fn pipeline() -> &'static Pipeline {
    model("sd15")
}

/// What a U-Net golden was told: text, and for SDXL the pooled text and the sizes.
fn told(want: &HashMap<String, Tensor>, case: &str) -> Told {
    let at = |part: &str| want.get(&if case.is_empty() { part.to_owned() } else { format!("{case}.{part}") }).cloned();
    let added = at("text_embeds").map(|pooled| (pooled, at("time_ids").unwrap()));
    Told { text: at("context").unwrap(), added, class: None }
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn difference(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (values(got), values(want));
    let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
    got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / rms
}

/// The one check: within tolerance, printing what was observed (`--nocapture` shows it).
#[track_caller]
pub(crate) fn check(what: &str, got: &Tensor, want: &Tensor) {
    let error = difference(got, want);
    eprintln!("{what}: {error:.1e}");
    assert!(error <= tolerance(), "{what}: {error:.2e}");
}

fn rules(list: &[(&str, f64)]) -> std::collections::BTreeMap<String, Dilation> {
    list.iter().map(|(site, d)| ((*site).to_owned(), Dilation::new(*d).unwrap())).collect()
}

const GRADED: [(&str, f64); 7] = [
    ("down_blocks.1.**", 2.0),
    ("down_blocks.2.**", 3.0),
    ("down_blocks.3.**", 4.0),
    ("mid_block.**", 4.0),
    ("up_blocks.0.**", 4.0),
    ("up_blocks.1.**", 3.0),
    ("up_blocks.2.**", 2.0),
];

fn uniform(factor: f64) -> [(&'static str, f64); 3] {
    [("down_blocks.{1,2,3}.**", factor), ("mid_block.**", factor), ("up_blocks.{0,1,2}.**", factor)]
}

fn redilation(tau: f64, progressive: bool, list: &[(&str, f64)]) -> Option<Redilation> {
    Some(Redilation { tau, of_steps: 6, progressive, dilation: rules(list), unmatched: Vec::new() })
}

const GRADED_SD21: [(&str, f64); 8] = [
    ("down_blocks.2.resnets.**", 3.0),
    ("down_blocks.2.downsamplers.**", 4.0),
    ("down_blocks.3.**", 4.0),
    ("mid_block.**", 4.0),
    ("up_blocks.0.**", 4.0),
    ("up_blocks.1.**", 4.0),
    ("up_blocks.2.**", 3.0),
    ("up_blocks.3.**", 2.0),
];

const GRADED_SDXL: [(&str, f64); 5] =
    [("down_blocks.2.**", 4.0), ("mid_block.**", 4.0), ("up_blocks.0.**", 4.0), ("up_blocks.1.**", 3.0), ("up_blocks.2.**", 2.0)];

const DISPERSED: [&str; 4] = ["down_blocks.2.downsamplers.**", "down_blocks.3.**", "mid_block.**", "up_blocks.{0,1}.**"];

const DISPERSED_SDXL: [&str; 3] = ["down_blocks.2.**", "mid_block.**", "up_blocks.0.**"];

fn dispersion_at(tau: f64, sites: &[&str]) -> Option<DispersionSettings> {
    let sites = sites.iter().map(|s| (*s).to_owned()).collect();
    Some(DispersionSettings { tau, of_steps: 6, sites, transform: Dispersion::PAPER, unmatched: Vec::new(), as_published: false })
}

fn dispersion(tau: f64) -> Option<DispersionSettings> {
    dispersion_at(tau, &DISPERSED)
}

fn method(settings: Settings) -> Method {
    Method::new("test", settings, pipeline().sites()).unwrap()
}

#[test]
fn noise_equals_torch() {
    for (name, want) in golden("torch_rng") {
        let (seed, rest) = name.strip_prefix("seed").unwrap().split_once('.').unwrap();
        if !rest.starts_with("randn.") && !rest.starts_with("generator.") {
            continue;
        }
        let got = Generator::new(seed.parse().unwrap()).randn(want.dims()).unwrap();
        for (a, b) in values(&got).iter().zip(values(&want)) {
            assert_eq!(*a, b, "{name}");
        }
    }
    let all = golden("torch_rng");
    for seed in [0u64, 23, 2_147_483_647] {
        let mut generator = Generator::new(seed);
        for i in 0..9 {
            let prefix = format!("seed{seed}.chain.{i}.");
            let want = all.iter().find(|(k, _)| k.starts_with(&prefix)).unwrap().1;
            let got = generator.randn(want.dims()).unwrap();
            for (a, b) in values(&got).iter().zip(values(want)) {
                assert_eq!(*a, b, "{prefix}");
            }
        }
    }
}

const PROMPTS: [&str; 5] = [
    ASTRONAUT,
    "",
    CORGI,
    "Miniature house with plants in the potted area, hyper realism, dramatic ambient lighting, high detail",
    "blurry, low quality, watermark",
];

#[test]
fn text() {
    for name in MODELS {
        let want = golden(&format!("{name}/text"));
        for suffix in ["", "_2"] {
            let Some(ids) = want.get(&format!("input_ids{suffix}")) else { continue };
            let ids: Vec<Vec<i64>> = ids.to_vec2().unwrap();
            let folder = data(&format!("models/tiny-{name}"));
            let (tokenizer, encoder) = (format!("tokenizer{suffix}"), format!("text_encoder{suffix}"));
            let tokens = ClipTokenizer::open(&folder.join(&tokenizer)).unwrap();
            let clip = crate::text::Clip::open(&folder, &tokenizer, &encoder, !suffix.is_empty(), &crate::LoadOptions::default()).unwrap();
            for (row, prompt) in PROMPTS.iter().enumerate() {
                let got: Vec<i64> = tokens.encode(prompt).unwrap().into_iter().map(i64::from).collect();
                assert_eq!(got, ids[row], "{name}: {prompt}");
                let got = clip.encode(prompt).unwrap();
                let at = |part: &str| want[&format!("{part}{suffix}")].narrow(0, row, 1).unwrap();
                check("last_hidden_state", &got.last, &at("last_hidden_state"));
                check("penultimate", &got.penultimate, &at("penultimate"));
                if let Some(pooled) = &got.pooled {
                    check("text_embeds", pooled, &at("text_embeds"));
                }
            }
        }
    }
}

/// Ours against candle's own CLIP, which knows OpenAI's activation only: the pocket checkpoint's encoder.
#[test]
fn text_encoder_equals_candles() {
    use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};
    let folder = folder().join("../../datasets/pocket");
    let ours = crate::text::Clip::open(&folder, "tokenizer", "text_encoder", false, &crate::LoadOptions::default()).unwrap();
    let read = std::fs::read(folder.join("text_encoder/config.json")).unwrap();
    let c: serde_json::Value = serde_json::from_slice(&read).unwrap();
    let n = |key: &str| c[key].as_u64().unwrap() as usize;
    let config = ClipTextConfig {
        vocab_size: n("vocab_size"),
        embed_dim: n("hidden_size"),
        activation: Activation::QuickGelu,
        intermediate_size: n("intermediate_size"),
        max_position_embeddings: n("max_position_embeddings"),
        pad_with: None,
        num_hidden_layers: n("num_hidden_layers"),
        num_attention_heads: n("num_attention_heads"),
        projection_dim: n("projection_dim"),
    };
    let tensors = candle_core::safetensors::load(folder.join("text_encoder/model.safetensors"), &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().map(|(k, v)| (k, v.to_dtype(DType::F32).unwrap())).collect();
    let vb = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let theirs = ClipTextTransformer::new(vb.pp("text_model"), &config).unwrap();
    for prompt in ["red apple", "", "face with tears of joy"] {
        let ids = ClipTokenizer::open(&folder.join("tokenizer")).unwrap().encode(prompt).unwrap();
        let want = theirs.forward_with_mask(&Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap(), usize::MAX).unwrap();
        check(prompt, &ours.encode(prompt).unwrap().last, &want);
    }
}

#[test]
fn token_ids() {
    let tokenizer = ClipTokenizer::open(&data("clip-tokenizer")).unwrap();
    let text = std::fs::read_to_string(data("clip_token_ids.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 48);
    for case in cases {
        let prompt = case["text"].as_str().unwrap();
        let mut want: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        // To 77, the end token last.
        if want.len() > 77 {
            want.truncate(76);
            want.push(49407);
        }
        want.resize(77, 49407);
        assert_eq!(tokenizer.encode(prompt).unwrap(), want, "{prompt}");
    }
    let tokenizer = ClipTokenizer::open(&data("models/tiny-sd15/tokenizer")).unwrap();
    let long = "a very long prompt about many things ".repeat(12);
    let ids = tokenizer.encode(&long).unwrap();
    assert_eq!((ids.len(), ids[76]), (77, 1513));
    let cut = tokenizer.overflow(&long).unwrap();
    assert!(long.ends_with(cut) && !cut.is_empty() && cut.len() < long.len(), "{cut}");
    assert_eq!(tokenizer.overflow(CORGI).unwrap().len(), 0);
}

#[test]
fn unet() {
    for name in MODELS {
        let want = golden(&format!("{name}/unet"));
        let unet = &model(name).unet;
        let cases = [
            ("base_t981", 981.0),
            ("base_t1", 1.0),
            ("x2_t500", 500.0),
            ("nonsq_24x40_t741", 741.0),
            ("odd_20x28_t261", 261.0),
            ("odd_22x30_t621", 621.0),
        ];
        for (case, timestep) in cases {
            let at = |part: &str| &want[&format!("{case}.{part}")];
            let got = unet.forward(at("sample"), timestep, &told(&want, case), &Plan::plain(&unet.sites)).unwrap();
            check(&format!("{name} {case}"), &got, at("out"));
        }
        let want = golden(&format!("{name}/unet_taps"));
        let mut seen = 0;
        let mut see = |path: &str, got: &Tensor| {
            check(&format!("{name} {path}"), got, &want[&format!("tap.{path}")]);
            seen += 1;
        };
        let shown = crate::unet::Shown { now: &want["sample"], before: None, frames: 1 };
        unet.forward_observed(&shown, 401.0, &told(&want, ""), &Plan::plain(&unet.sites), &mut see).unwrap();
        assert_eq!(seen, if name == "sdxl" { 11 } else { 12 });
    }
}

/// What `--dtype bf16` costs, and on a GPU `f16`: root mean square of the deviation over that of the reference. Rounding to eight bits
/// is a relative error of 2^-9 at most and adds up like noise; `f16` has three bits more.
#[test]
fn half_types_deviate_like_rounding() {
    let gpu = scalebench_kernels::on_gpu(&LoadOptions::default().device);
    for (name, dtype) in MODELS.iter().flat_map(|name| [(name, Dtype::Bf16), (name, Dtype::F16)]) {
        if dtype == Dtype::F16 && !gpu {
            continue;
        }
        let folder = data(&format!("models/tiny-{name}/unet"));
        let unet = crate::unet::UNet::open(&folder, &LoadOptions { dtype, ..LoadOptions::default() }).unwrap();
        let want = golden(&format!("{name}/unet"));
        for (case, timestep) in [("base_t981", 981.0), ("x2_t500", 500.0), ("odd_22x30_t621", 621.0)] {
            let at = |part: &str| &want[&format!("{case}.{part}")];
            let got = unet.forward(at("sample"), timestep, &told(&want, case), &Plan::plain(&unet.sites)).unwrap();
            let (got, want) = (values(&got), values(at("out")));
            let squares = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>();
            let deviation = (squares(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / squares(&mut want.iter().copied())).sqrt();
            eprintln!("{name} {case} {dtype}: {deviation:.1e}");
            let range = if dtype == Dtype::F16 { 1e-5..5e-3 } else { 1e-4..3e-2 };
            assert!(range.contains(&deviation), "{name} {case} {dtype}: {deviation:.2e}");
        }
    }
}

/// Images made together are those made one by one, to the byte: with their own seeds, noise, prompts and rescaled guidance.
#[test]
fn images_do_not_depend_on_batches() {
    let pipeline = pipeline();
    let method = Method::direct(pipeline.sites());
    let zeros = Tensor::zeros((1, 4, 16, 16), DType::F32, &Device::Cpu).unwrap();
    let one = |prompt, seed| Request { seed, guidance_rescale: 0.5, ..request(&zeros, prompt, 2, 1.0) };
    let requests = [one(CORGI, 1), one("a lighthouse", 2), one("a lighthouse", 3)];
    let alone: Vec<_> = requests.iter().map(|request| pipeline.generate(request, &method, None).unwrap()).collect();
    let together = pipeline.generate_batch(&requests.each_ref(), &method).unwrap();
    assert_eq!(together, alone);
    assert_ne!(alone[1], alone[2]);
    let other = Request { steps: 3, ..requests[0].clone() };
    assert!(pipeline.generate_batch(&[&requests[0], &other], &method).is_err());
    assert!(pipeline.generate_batch(&[], &method).unwrap().is_empty());
}

fn moment(timestep: f64, latent: (usize, usize), native: (usize, usize)) -> crate::step::Moment {
    crate::step::Moment { step: 0, n_steps: 6, timestep, latent, native, guidance_scale: 1.0, ..Default::default() }
}

#[test]
fn redilated_unet() {
    let graded = |dispersed: bool, list: &[(&str, f64)], spread: &[&str]| Settings {
        redilation: redilation(6.0, false, list),
        dispersion: if dispersed { dispersion_at(6.0, spread) } else { None },
        ..Settings::default()
    };
    let plain = |factor: f64| graded(false, &uniform(factor), &[]);
    let sd15: Vec<(&str, Settings)> = vec![
        ("f2", plain(2.0)),
        ("f2p5", plain(2.5)),
        ("f234", graded(false, &GRADED, &[])),
        ("f234_disperse", graded(true, &GRADED, &DISPERSED)),
    ];
    let sd21 = vec![("f2p5", plain(2.5)), ("f234_disperse", graded(true, &GRADED_SD21, &DISPERSED))];
    let sdxl = vec![
        ("f2", graded(false, &[("mid_block.**", 2.0), ("up_blocks.0.**", 2.0)], &[])),
        ("f234", graded(false, &GRADED_SDXL, &[])),
        ("f234_disperse", graded(true, &GRADED_SDXL, &DISPERSED_SDXL)),
    ];
    for (name, cases) in [("sd15", sd15), ("sd21", sd21), ("sdxl", sdxl)] {
        let want = golden(&format!("scalecrafter/unet_{name}"));
        let unet = &model(name).unet;
        for (case, settings) in cases {
            let method = Method::new("test", settings, &unet.sites).unwrap();
            let mut n = 0;
            for (size, timestep) in [("48x48", 701.0), ("48x40", 701.0), ("20x28", 601.0), ("24x40", 601.0), ("22x26", 601.0)] {
                let at = |part: &str| want.get(&format!("{size}.{part}"));
                let Some(sample) = at("sample") else { continue };
                let passes = method.passes(&unet.sites, &moment(timestep, (32, 32), (32, 32)));
                let got = unet.forward(sample, timestep, &told(&want, size), &passes[0].plan).unwrap();
                check(&format!("{name} {size}.{case}"), &got, at(&format!("{case}.out")).unwrap());
                n += 1;
            }
            assert_eq!(n, 2);
        }
    }
}

#[test]
fn attention_scale() {
    let want = golden("scalecrafter/scaled_attn");
    let unet = &pipeline().unet;
    let (sample, context) = (&want["sd15.sample"], told(&want, "sd15"));
    let method = method(Settings { attention_scale: Some(crate::methods::AttentionScale {}), ..Settings::default() });
    let plain = unet.forward(sample, 601.0, &context, &Plan::plain(&unet.sites)).unwrap();
    check("plain", &plain, &want["sd15.plain.out"]);
    // The case's ratio of areas, whatever the true latent size: a native size that has it.
    for (case, native) in [("c0", (16, 20)), ("c1", (16, 40)), ("c2", (8, 10))] {
        let plan = &method.passes(&unet.sites, &moment(601.0, (32, 40), native))[0].plan;
        let got = unet.forward(sample, 601.0, &context, plan).unwrap();
        check(case, &got, &want[&format!("sd15.{case}.out")]);
        assert!(difference(&got, &plain) > 1e-3, "{case}: the softmax scale must reach the network");
    }
}

#[test]
fn freeu() {
    use crate::methods::{FreeU, Trigger};
    let want = golden("scalecrafter/freeu");
    for size in ["5x7", "6x9", "8x8"] {
        for s in ["0.2", "0.9"] {
            let got = scalebench_kernels::scale_low_frequencies(&want[&format!("ff.{size}.x")], s.parse().unwrap()).unwrap();
            check(&format!("filter {size} {s}"), &got, &want[&format!("ff.{size}.s{s}")]);
        }
    }
    for (name, b1, b2) in [("sd15", 1.2, 1.4), ("sd21", 1.1, 1.2)] {
        let unet = &model(name).unet;
        let settings = |trigger| Settings { freeu: Some(FreeU { trigger, b1, b2, s1: 0.9, s2: 0.2 }), ..Settings::default() };
        let run = |trigger| {
            let method = Method::new("test", settings(trigger), &unet.sites).unwrap();
            let plan = &method.passes(&unet.sites, &moment(501.0, (24, 32), (32, 32)))[0].plan;
            unet.forward(&want[&format!("{name}.sample")], 501.0, &told(&want, name), plan).unwrap()
        };
        check(name, &run(Trigger::Channels), &want[&format!("{name}.out")]);
        assert!(difference(&run(Trigger::Blocks), &want[&format!("{name}.out")]) > 1e-3, "the two triggers differ");
    }
}

#[test]
fn convolutions() {
    let conv = |weight: &Tensor, bias: &Tensor, stride: usize| crate::unet::SiteConv::bare(weight, bias.clone(), stride);
    let want = golden("scalecrafter/redilate_conv");
    let mut n = 0;
    for (name, want_y) in want.iter().filter(|(k, _)| k.starts_with('s')) {
        let (stride, rest) = name[1..].split_once(".f").unwrap();
        let (factor, size) = rest.rsplit_once('.').unwrap();
        let dilation = factor.parse().ok().map(|f| Dilation::new(f).unwrap());
        let conv = conv(&want["weight"], &want["bias"], stride.parse().unwrap());
        let action = ConvAction { dilation, ..ConvAction::default() };
        check(name, &conv.forward(&want[&format!("x.{size}")], &action, None).unwrap(), want_y);
        n += 1;
    }
    assert_eq!(n, 72);

    let want = golden("scalecrafter/inflate_conv");
    let mut n = 0;
    for (name, want_y) in want.iter().filter(|(k, _)| k.starts_with("R20to1_new.s") && !k.contains("plain")) {
        let (stride, rest) = name["R20to1_new.s".len()..].split_once(".f").unwrap();
        let (factor, size) = rest.rsplit_once('.').unwrap();
        let conv = conv(&want["weight"], &want["bias"], stride.parse().unwrap());
        let dilation = Some(Dilation::new(factor.parse().unwrap()).unwrap());
        let action = ConvAction { kernel: Kernel::Dispersed(Dispersion::PAPER), dilation, ..ConvAction::default() };
        check(name, &conv.forward(&want[&format!("x.{size}")], &action, None).unwrap(), want_y);
        n += 1;
    }
    assert_eq!(n, 12);
}

#[test]
fn dispersion_transforms() {
    let want = golden("scalecrafter/R");
    for (name, want) in &want {
        // solved.<small>to<large>_n<input>_s<scale>_eta<eta>
        let rest = name.strip_prefix("solved.").unwrap();
        let (sides, rest) = rest.split_once("_n").unwrap();
        let (small, large) = sides.split_once("to").unwrap();
        let (input, rest) = rest.split_once("_s").unwrap();
        let (scale, eta) = rest.split_once("_eta").unwrap();
        let n = |s: &str| s.parse().unwrap();
        let settings = Dispersion { small: n(small), large: n(large), input: n(input), scale: n(scale), eta: eta.parse().unwrap() };
        let got = disperse(settings).unwrap();
        let error = got.iter().zip(values(want)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        eprintln!("{name}: {error:.1e}");
        assert!(error < 1e-9, "{name}: {error:e}");
    }
    let r = disperse(Dispersion::PAPER).unwrap();
    let column = |n: usize| (0..25).map(|m| r[m * 9 + n]).sum::<f64>();
    for (n, sum) in [(0, 1.1267), (1, 1.0613), (4, 1.0)] {
        assert!((column(n) - sum).abs() < 5e-5, "{n}: {}", column(n));
    }
}

/// Step sequences of diffusers' schedulers on given model outputs.
#[test]
fn sampler_steps() {
    let folder = tempfile::tempdir().unwrap();
    let v = &[("prediction_type", "v_prediction")][..];
    let leading = &[("timestep_spacing", "leading")][..];
    let plain = ScheduleOptions::default();
    let trailing = ScheduleOptions { timestep_spacing: Some(Spacing::Trailing), ..plain };
    let karras = ScheduleOptions { use_karras_sigmas: Some(true), ..plain };
    let cases = [
        ("ddim_sd_eta0", Sampler::Ddim, 0.0, &[][..], plain),
        ("ddim_sd_eta1", Sampler::Ddim, 1.0, &[], plain),
        ("ddim_trailing_eta0", Sampler::Ddim, 0.0, &[], trailing),
        ("ddim_v_eta0", Sampler::Ddim, 0.0, v, plain),
        ("ddim_v_eta1", Sampler::Ddim, 1.0, v, plain),
        ("ddim_xl_eta1", Sampler::Ddim, 1.0, leading, plain),
        ("ddim_zero_snr", Sampler::Ddim, 0.0, v, ScheduleOptions { rescale_betas_zero_snr: Some(true), ..trailing }),
        ("ddpm_sd", Sampler::Ddpm, 0.0, &[], plain),
        ("ddpm_v", Sampler::Ddpm, 0.0, v, plain),
        ("pndm_sd", Sampler::Pndm, 0.0, &[], plain),
        ("pndm_v", Sampler::Pndm, 0.0, v, plain),
        ("euler_sd_linspace", Sampler::Euler, 0.0, &[], plain),
        ("euler_trailing", Sampler::Euler, 0.0, leading, trailing),
        ("euler_v", Sampler::Euler, 0.0, v, plain),
        ("euler_xl", Sampler::Euler, 0.0, leading, plain),
        ("euler_xl_karras", Sampler::Euler, 0.0, leading, karras),
        ("euler_ancestral_sd", Sampler::EulerAncestral, 0.0, &[], plain),
        ("euler_ancestral_v", Sampler::EulerAncestral, 0.0, v, plain),
        ("dpmpp2m_sd", Sampler::DpmPp2m, 0.0, &[], plain),
        ("dpmpp2m_sd_20", Sampler::DpmPp2m, 0.0, &[], plain),
        ("dpmpp2m_sd_karras", Sampler::DpmPp2m, 0.0, &[], karras),
        ("dpmpp2m_v", Sampler::DpmPp2m, 0.0, v, plain),
        ("dpmpp2m_xl_leading", Sampler::DpmPp2m, 0.0, leading, plain),
        ("unipc_sd", Sampler::UniPc, 0.0, &[], plain),
        ("unipc_sd_karras", Sampler::UniPc, 0.0, &[], karras),
        ("unipc_v", Sampler::UniPc, 0.0, v, plain),
        ("unipc_xl_leading", Sampler::UniPc, 0.0, leading, plain),
    ];
    for (case, sampler, eta, more, options) in cases {
        let want = golden(&format!("schedulers/{case}"));
        let file = folder.path().join(format!("{case}.json"));
        let mut config = serde_json::json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false, "steps_offset": 1,
            "set_alpha_to_one": false, "skip_prk_steps": true,
        });
        for (key, value) in more {
            config[*key] = (*value).into();
        }
        std::fs::write(&file, config.to_string()).unwrap();
        let schedule = Schedule::open(&file).unwrap();
        let mut runs = 0;
        for n in [20usize, 10, 7] {
            let at = |part: &str| want.get(&format!("n{n}.{part}"));
            let Some(timesteps) = at("timesteps") else { continue };
            let mut walk = schedule.walk(sampler, n, eta, &options).unwrap();
            for (got, want) in walk.timesteps().iter().zip(values(timesteps)) {
                assert!((got - want).abs() < 1e-3, "{case}: {got} {want}");
            }
            assert_eq!(walk.timesteps().len(), timesteps.dims()[0]);
            let mut x = at("init").unwrap().clone();
            for i in 0..walk.timesteps().len() {
                if let Some(scaled) = at("scaled_inputs") {
                    check(&format!("{case} {n} input {i}"), &walk.scale_input(i, &x).unwrap(), &scaled.get(i).unwrap());
                }
                let noise = at("noise").map(|n| n.get(i).unwrap());
                assert_eq!(noise.is_some(), walk.draws_noise(), "{case}");
                let output = at("model_outputs").unwrap().get(i).unwrap();
                x = walk.step(i, &x, &output, noise.as_ref()).unwrap();
                check(&format!("{case} {n} {i}"), &x, &at("samples").unwrap().get(i).unwrap());
            }
            runs += 1;
        }
        assert!(runs > 0, "{case}");
    }
}

#[test]
fn added_noise() {
    let want = golden("schedulers/add_noise");
    let schedule = Schedule::open(&data("models/tiny-sd15/scheduler/scheduler_config.json")).unwrap();
    let walk = schedule.walk(Sampler::Ddim, 1000, 0.0, &ScheduleOptions::default()).unwrap();
    let timesteps: Vec<i64> = want["t"].to_vec1().unwrap();
    for (row, t) in timesteps.into_iter().enumerate() {
        let Some(i) = walk.timesteps().iter().position(|&s| s == t as f64) else { continue };
        let pick = |name: &str| want[name].get(row).unwrap();
        check("noisy", &walk.add_noise(i, &pick("x"), &pick("noise")).unwrap(), &pick("noisy"));
    }
}

#[test]
fn autoencoder() {
    for name in MODELS {
        let want = golden(&format!("{name}/vae"));
        for i in 0..2 {
            let got = model(name).vae.decode(&want[&format!("decode{i}.latents")]).unwrap();
            check("decode", &got, &want[&format!("decode{i}.image")]);
            let strips = model(name).vae.decode_in_small_strips(&want[&format!("decode{i}.latents")]).unwrap();
            check("decode in strips", &strips, &want[&format!("decode{i}.image")]);
            let (mean, logvar) = model(name).vae.encode(&want[&format!("encode{i}.image")]).unwrap();
            check("encode mean", &mean, &want[&format!("encode{i}.mean")]);
            check("encode logvar", &logvar, &want[&format!("encode{i}.logvar")]);
        }
    }
}

#[test]
fn tiled_decode() {
    use crate::VaeDecode;
    let want = golden("scalecrafter/vae_tiled");
    let latents = &want["sd15.18x11.latents"];
    let run = |how| pipeline().vae.decode_as(latents, how).unwrap();
    check("tiled", &run(VaeDecode::Tiled), &want["sd15.18x11.tiled"]);
    check("synchronised", &run(VaeDecode::TiledSynchronised), &want["sd15.18x11.sync"]);
    assert!(difference(&run(VaeDecode::Whole), &want["sd15.18x11.tiled"]) > 1e-2, "tiling moves results");
}

const ASTRONAUT: &str = "a professional photograph of an astronaut riding a horse";
const CORGI: &str = "A corgi sits on a beach chair on a beautiful beach, with palm trees behind, high details";

fn request(latent: &Tensor, prompt: &str, steps: usize, eta: f64) -> Request {
    let (_, _, h, w) = latent.dims4().unwrap();
    Request {
        prompt: prompt.into(),
        negative_prompt: String::new(),
        width: w as u32 * 8,
        height: h as u32 * 8,
        steps,
        sampler: Sampler::Ddim,
        schedule: ScheduleOptions::default(),
        guidance_scale: 7.5,
        guidance_rescale: 0.0,
        eta,
        seed: 0,
        size_conditioning: SizeConditioning::Target,
        vae_decode: crate::VaeDecode::Whole,
        seeding: crate::Seeding::PerImage,
        frames: 1,
    }
}

/// Runs a loop on the golden's randomness and compares every recorded stage of batch row `row`.
fn check_loop(pipeline: &Pipeline, path: &str, want: &HashMap<String, Tensor>, request: &Request, method: &Method, row: usize) {
    let pick = |t: &Tensor| t.narrow(0, row, 1).unwrap();
    let injected = Injected {
        init_latents: Some(pick(&want["init_latents"])),
        step_noise: want.get("noise").map(|n| n.narrow(1, row, 1).unwrap()),
        ..Injected::default()
    };
    let mut trace = Trace::default();
    pipeline.generate_with(request, method, &injected, Some(&mut trace)).unwrap();
    let batch = want["init_latents"].dims()[0];
    let mut n = 0;
    for (name, want) in want {
        let what = format!("{path}[{row}] {name}");
        if name.starts_with("guided.") || name.starts_with("latents.") || name == "final_latents" {
            check(&what, &trace.tensors[name], &pick(want));
        } else if let Some(rest) = name.strip_prefix("unet") {
            // [empty × batch, text × batch]; of the damped network only the empty half is used.
            let (i, network) = rest.split_once('.').unwrap();
            let rows: &[(usize, usize)] = if network == "main" { &[(0, row), (1, batch + row)] } else { &[(2, row)] };
            for (pass, at) in rows {
                check(&what, &trace.tensors[&format!("pass{pass}.{i}")], &want.narrow(0, *at, 1).unwrap());
            }
        } else {
            continue;
        }
        n += 1;
    }
    assert!(n >= 3, "{path}: only {n} stages compared");
}

#[test]
fn diffusers_loops() {
    let negative = "blurry, low quality, watermark";
    for (name, eta, rescale, negative, sampler) in [
        ("sd15/loop_ddim_eta0", 0.0, 0.0, negative, Sampler::Ddim),
        ("sd15/loop_ddim_eta1", 1.0, 0.0, "", Sampler::Ddim),
        ("sd15/loop_ddim_eta0_rescale", 0.0, 0.7, negative, Sampler::Ddim),
        ("sd15/loop_unipc", 0.0, 0.0, negative, Sampler::UniPc),
        ("sd21/loop_dpmpp2m", 0.0, 0.0, negative, Sampler::DpmPp2m),
        ("sd21/loop_ddim_v", 0.0, 0.0, negative, Sampler::Ddim),
        ("sdxl/loop_euler", 0.0, 0.0, "", Sampler::Euler),
        ("sdxl/loop_euler_neg", 0.0, 0.0, negative, Sampler::Euler),
    ] {
        let want = golden(name);
        let pipeline = if name.ends_with("_v") { v_prediction() } else { model(name.split_once('/').unwrap().0) };
        let mut request = request(&want["init_latents"], ASTRONAUT, 10, eta);
        if name.starts_with("sdxl") {
            request.guidance_scale = 5.0;
        }
        request.guidance_rescale = rescale;
        request.negative_prompt = negative.into();
        request.sampler = sampler;
        check_loop(pipeline, name, &want, &request, &Method::direct(pipeline.sites()), 0);
    }
}

/// The SD 2.1 model under the scheduler of its 768 px sibling.
fn v_prediction() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let from = data("models/tiny-sd21");
        for component in ["text_encoder", "tokenizer", "unet", "vae", "scheduler"] {
            std::fs::create_dir(folder.path().join(component)).unwrap();
            let source = from.join(if component == "scheduler" { "scheduler_v_prediction" } else { component });
            for entry in std::fs::read_dir(source).unwrap() {
                let file = entry.unwrap().path();
                std::fs::copy(&file, folder.path().join(component).join(file.file_name().unwrap())).unwrap();
            }
        }
        Pipeline::load(folder.path()).unwrap()
    })
}

#[test]
fn official_scalecrafter_loops() {
    let graded_weak = &GRADED[1..6];
    let xl_weak_disperse =
        [("down_blocks.2.**", 3.0), ("mid_block.**", 3.0), ("up_blocks.0.resnets.**", 3.0), ("up_blocks.0.upsamplers.**", 2.0)];
    let xl_weak = [("mid_block.**", 2.0), ("up_blocks.0.**", 2.0)];
    let plain = |tau: f64, list: &[(&str, f64)]| Settings { redilation: redilation(tau, false, list), ..Settings::default() };
    let damped = |tau, list: &[(&str, f64)], weak_tau, weak: &[(&str, f64)], dispersion| Settings {
        redilation: redilation(tau, true, list),
        noise_damped_guidance: redilation(weak_tau, true, weak),
        dispersion,
        ..Settings::default()
    };
    let cases = [
        ("loop_sd15_dilate", 1.0, 0.0, plain(4.0, &uniform(2.0))),
        ("loop_sd15_eta0_odd", 0.0, 0.7, plain(4.0, &uniform(2.5))),
        ("loop_sd15_ndcfg_prog_b2", 1.0, 0.0, damped(5.0, &GRADED, 3.0, graded_weak, None)),
        ("loop_sd15_disperse", 1.0, 0.0, damped(5.0, &GRADED, 3.0, graded_weak, dispersion_at(2.0, &DISPERSED))),
        ("loop_sd21_dilate25", 1.0, 0.0, plain(4.0, &uniform(2.5))),
        ("loop_sd21_v_pred", 1.0, 0.0, plain(4.0, &uniform(2.0))),
        ("loop_sd21_disperse", 1.0, 0.0, damped(4.0, &GRADED_SD21, 3.0, &GRADED_SD21[..7], dispersion_at(2.0, &DISPERSED))),
        ("loop_sdxl_dilate", 1.0, 0.0, plain(4.0, &[("mid_block.**", 2.0), ("up_blocks.0.**", 2.0)])),
        ("loop_sdxl_ndcfg_prog", 1.0, 0.0, damped(5.0, &GRADED_SDXL, 4.0, &xl_weak, None)),
        ("loop_sdxl_disperse", 1.0, 0.0, damped(4.0, &GRADED_SDXL, 3.0, &xl_weak_disperse, dispersion_at(2.0, &DISPERSED_SDXL))),
    ];
    for (name, eta, rescale, settings) in cases {
        let want = golden(&format!("scalecrafter/{name}"));
        let pipeline = if name.ends_with("v_pred") { v_prediction() } else { model(name.split('_').nth(1).unwrap()) };
        let method = Method::new("test", settings, pipeline.sites()).unwrap();
        for row in 0..want["init_latents"].dims()[0] {
            let prompt = if row == 0 { ASTRONAUT } else { CORGI };
            let mut request = request(&want["init_latents"], prompt, 6, eta);
            request.guidance_rescale = rescale;
            if name.contains("sdxl") {
                request.guidance_scale = 5.0;
            }
            check_loop(pipeline, name, &want, &request, &method, row);
        }
    }
}

#[test]
fn plain_plans_are_bit_identical_to_the_network() {
    let want = golden("sd15/unet");
    let unet = &pipeline().unet;
    let (x, text) = (&want["base_t1.sample"], told(&want, "base_t1"));
    // A method after its last active step, and one at the training size, plan nothing.
    let method = method(Settings { redilation: redilation(3.0, true, &GRADED), ..Settings::default() });
    let moment = crate::step::Moment {
        step: 3,
        n_steps: 6,
        timestep: 1.0,
        latent: (32, 32),
        native: (32, 32),
        guidance_scale: 7.5,
        ..Default::default()
    };
    let passes = method.passes(&unet.sites, &moment);
    assert!(passes.iter().all(|p| p.plan.is_plain()));
    let a = unet.forward(x, 1.0, &text, &passes[0].plan).unwrap();
    let b = unet.forward(x, 1.0, &text, &Plan::plain(&unet.sites)).unwrap();
    assert_eq!(values(&a), values(&b));
}

fn preset(name: &str) -> MethodSpec {
    let file = folder().join("../../experiments/methods").join(format!("{name}.yaml"));
    MethodSpec::parse(&std::fs::read_to_string(&file).unwrap(), &file).unwrap()
}

/// Every preset against the official configuration files, layer by layer and step by step.
#[test]
fn presets_equal_the_official_settings() {
    let text = std::fs::read_to_string(data("scalecrafter/official_settings.json")).unwrap();
    let official: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for (config, want) in official.as_object().unwrap() {
        let (family, size) = config.split_once('_').unwrap();
        if size == "vanilla" {
            continue;
        }
        let name = family.replace('.', "");
        let sites = model(&name).sites();
        let n = |key: &str| want[key].as_u64().unwrap() as usize;
        let side = if name == "sdxl" { 128 } else { 64 };
        let scale = (n("latent_height") * n("latent_width")) as f64 / f64::from(side * side);
        let method = preset("scalecrafter-as-published").resolve(&name, scale, sites).unwrap();
        let list = |key: &str| want[key].as_object().cloned().unwrap_or_default();
        for step in 0..50 {
            let latent = (n("latent_height"), n("latent_width"));
            let at = crate::step::Moment {
                step,
                n_steps: 50,
                timestep: 0.0,
                latent,
                native: (side as usize, side as usize),
                guidance_scale: 7.5,
                ..Default::default()
            };
            let passes = method.passes(sites, &at);
            assert_eq!(passes.len(), if step < n("ndcfg_tau") { 3 } else { 2 }, "{config} {step}");
            assert!((passes.iter().map(|p| p.weight).sum::<f64>() - 1.0).abs() < 1e-12);
            for (pass, key, tau) in [(0, "dilate_settings", "dilate_tau"), (2, "ndcfg_dilate_settings", "ndcfg_tau")] {
                let Some(pass) = passes.get(pass) else { continue };
                let (list, tau) = (list(key), n(tau));
                for (site, action) in sites.convs.iter().zip(&pass.plan.convs) {
                    let factor = list.get(&site.path).filter(|_| step < tau).map(|f| f.as_f64().unwrap());
                    let factor = match want["progressive"].as_bool().unwrap() {
                        true => factor.map(|f| (f * (tau - step) as f64 / tau as f64).ceil().max(2.0)),
                        false => factor,
                    };
                    assert_eq!(action.dilation.map(Dilation::get), factor, "{config} {step} {}", site.path);
                    assert_eq!(action.kernel, Kernel::Trained, "`inflate_tau` is 0");
                }
                let skips = pass.plan.skips.iter().filter(|s| **s != crate::plan::SkipAction::default()).count();
                assert_eq!(skips, if name == "sdxl" { 7 } else { 10 }, "FreeU is on");
            }
        }
        // Where a dispersion list is published, the method of the paper acts on exactly its sites.
        let disperse: Vec<&str> = want["disperse_settings"].as_array().into_iter().flatten().map(|s| s.as_str().unwrap()).collect();
        if !disperse.is_empty() {
            let method = preset("scalecrafter-disperse").resolve(&name, scale, sites).unwrap();
            let plan = &method.passes(sites, &moment(0.0, (128, 128), (64, 64)))[0].plan;
            for (site, action) in sites.convs.iter().zip(&plan.convs) {
                assert_eq!(action.kernel != Kernel::Trained, disperse.contains(&site.path.as_str()), "{config} {}", site.path);
            }
        }
        // Every name of the lists that exists is matched by the count; the rest is spelled out as unmatched.
        let exist = |key: &str| list(key).keys().filter(|k| sites.convs.iter().any(|s| s.path == **k)).count();
        if name == "sdxl" {
            assert_eq!(exist("dilate_settings"), if list("dilate_settings").len() == 15 { 11 } else { 28 });
        }
        compared += 1;
    }
    assert_eq!(compared, 15);
    assert_eq!(pipeline().sites().convs.len(), 52, "50 convolutions are open to methods, and conv_in and conv_out");
}

#[test]
fn every_preset_resolves_for_every_family_and_scale() {
    for name in
        ["direct-inf", "attn-sf", "redilation", "redilation-disperse", "scalecrafter", "scalecrafter-disperse", "scalecrafter-as-published"]
    {
        for (family, tiny) in [("sd15", "sd15"), ("pocket", "sd15"), ("sd21", "sd21"), ("sd21-768", "sd21"), ("sdxl", "sdxl")] {
            for scale in [4.0, 6.25, 8.0, 16.0] {
                preset(name).resolve(family, scale, model(tiny).sites()).unwrap();
            }
        }
    }
}

#[test]
fn rules_that_cannot_take_effect_are_errors() {
    let sites = pipeline().sites();
    let refuse = |settings: Settings, fragment: &str| {
        let message = Method::new("m", settings, sites).unwrap_err().to_string();
        assert!(message.contains(fragment), "{message}");
    };
    let base = || redilation(3.0, false, &uniform(2.0));
    refuse(Settings { redilation: redilation(3.0, false, &[("down_blocks.4.**", 2.0)]), ..Settings::default() }, "matches no convolution");
    refuse(Settings { redilation: redilation(0.0, false, &uniform(2.0)), ..Settings::default() }, "`redilation.tau` is 0");
    refuse(
        Settings { redilation: redilation(3.0, false, &[("mid_block.**", 2.0), ("mid_block.resnets.0.*", 3.0)]), ..Settings::default() },
        "both match",
    );
    let unmatched = Redilation { unmatched: vec!["mid_block.**".into()], ..base().unwrap() };
    refuse(Settings { redilation: Some(unmatched), ..Settings::default() }, "expected a rule without a match");
    refuse(Settings { redilation: base(), dispersion: dispersion(0.0), ..Settings::default() }, "`dispersion.tau` is 0");
    refuse(Settings { noise_damped_guidance: base(), ..Settings::default() }, "without `redilation`");
    let far = DispersionSettings { sites: vec!["conv_out".into()], ..dispersion(3.0).unwrap() };
    refuse(Settings { redilation: base(), dispersion: Some(far), ..Settings::default() }, "in no dilation list");
}

/// A start at the last step keeps the smaller image; one at an early step leaves it behind.
#[test]
fn sdedit_starts_from_the_smaller_image() {
    use crate::methods::Sdedit;
    let latent = Tensor::zeros((1, 4, 32, 48), DType::F32, &Device::Cpu).unwrap();
    let mut request = request(&latent, CORGI, 10, 0.0);
    request.guidance_scale = 1.0;
    let run = |tau: f64| {
        let sdedit = Some(Sdedit { tau, of_steps: 10, scale: 2.0 });
        let mut trace = Trace::default();
        pipeline()
            .generate_with(&request, &method(Settings { sdedit, ..Settings::default() }), &Injected::default(), Some(&mut trace))
            .unwrap();
        trace.tensors
    };
    let (late, early) = (run(9.0), run(2.0));
    assert_eq!(late.keys().filter(|k| k.starts_with("guided.")).collect::<Vec<_>>(), ["guided.9"]);
    assert_eq!(early.keys().filter(|k| k.starts_with("guided.")).count(), 8);
    // The same smaller image under both: at the last step little noise is added to it.
    let small = Request { width: request.width / 2, height: request.height / 2, ..request.clone() };
    let mut trace = Trace::default();
    pipeline().generate_with(&small, &method(Settings::default()), &Injected::default(), Some(&mut trace)).unwrap();
    let image = pipeline().vae.decode(&(&trace.tensors["final_latents"] / pipeline().vae.scaling_factor).unwrap()).unwrap();
    let image = scalebench_kernels::enlarge_bicubic(&image.clamp(-1f32, 1f32).unwrap(), 256, 384).unwrap();
    let mean = pipeline().vae.encode(&image.clamp(-1f32, 1f32).unwrap()).unwrap().0;
    let clean = (mean * pipeline().vae.scaling_factor).unwrap();
    let walk = Schedule::open(&data("models/tiny-sd15/scheduler/scheduler_config.json")).unwrap();
    let walk = walk.walk(Sampler::Ddim, 10, 0.0, &ScheduleOptions::default()).unwrap();
    let start = walk.add_noise(9, &clean, &late["init_latents"]).unwrap();
    let plain = Plan::plain(pipeline().sites());
    let told = Told { text: late["text.cond"].clone(), added: None, class: None };
    check("first prediction", &pipeline().unet.forward(&start, 1.0, &told, &plain).unwrap(), &late["pass0.9"]);
    for (tau, scale, fragment) in [(0.0, 2.0, "`sdedit.tau` is 0"), (10.0, 2.0, "a tau below"), (3.0, 1.0, "a scale above 1")] {
        let sdedit = Some(Sdedit { tau, of_steps: 10, scale });
        let error = Method::new("m", Settings { sdedit, ..Settings::default() }, pipeline().sites()).unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    }
}

/// Seeds set before each batch: row `i` of a batch's noise, as torch draws it.
#[test]
fn batched_seeding_draws_a_row_of_the_batch() {
    let want = &golden("torch_rng")["seed23.randn.2x4x10x10"];
    let mut request = request(&Tensor::zeros((1, 4, 10, 10), DType::F32, &Device::Cpu).unwrap(), CORGI, 1, 0.0);
    request.seed = 23;
    for row in 0..2 {
        request.seeding = crate::Seeding::Batched { batch: 2, row };
        let mut trace = Trace::default();
        pipeline().generate_with(&request, &method(Settings::default()), &Injected::default(), Some(&mut trace)).unwrap();
        assert_eq!(values(&trace.tensors["init_latents"]), values(&want.narrow(0, row, 1).unwrap()));
    }
}

/// Embedding ahead changes nothing, and texts that were not embedded ahead are still served.
#[test]
fn texts_embedded_ahead_give_the_same_image() {
    let pipeline = Pipeline::load(&data("models/tiny-sdxl")).unwrap();
    let method = Method::direct(pipeline.sites());
    let mut request = request(&Tensor::zeros((1, 4, 8, 8), DType::F32, &Device::Cpu).unwrap(), CORGI, 1, 0.0);
    let before = pipeline.generate(&request, &method, None).unwrap();
    pipeline.embed_ahead([&request]).unwrap();
    assert_eq!(pipeline.generate(&request, &method, None).unwrap(), before);
    request.prompt = ASTRONAUT.into();
    assert_ne!(pipeline.generate(&request, &method, None).unwrap(), before);
}

#[test]
fn images_do_not_depend_on_threads() {
    let mut request = request(&Tensor::zeros((1, 4, 12, 16), DType::F32, &Device::Cpu).unwrap(), CORGI, 2, 1.0);
    request.seed = 11;
    let method = method(Settings { redilation: redilation(6.0, false, &uniform(2.5)), ..Settings::default() });
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| pipeline().generate(&request, &method, None).unwrap())
    };
    assert_eq!(run(1), run(3));
}
