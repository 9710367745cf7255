//! Parity with diffusers and with the official ScaleCrafter code on a tiny random-weight model of the
//! Stable Diffusion 1.5 layout. `tests/data/README.md` says how the arrays were made.

use crate::methods::{Dispersion as DispersionSettings, Method, Redilation, Settings};
use crate::noise::Generator;
use crate::pipeline::{Injected, Pipeline, Request, Trace};
use crate::plan::{ConvAction, Dilation, Kernel, Plan};
use crate::sampler::{Sampler, Schedule};
use crate::{ClipTokenizer, Dispersion, MethodSpec, disperse};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Largest difference over the reference's root mean square.
const TOLERANCE: f64 = 1e-4;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("data").join(path)
}

fn golden(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data(&format!("{path}.safetensors")), &Device::Cpu).unwrap()
}

fn pipeline() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| Pipeline::load(&data("models/tiny-sd15")).unwrap())
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
fn check(what: &str, got: &Tensor, want: &Tensor) {
    let error = difference(got, want);
    eprintln!("{what}: {error:.1e}");
    assert!(error <= TOLERANCE, "{what}: {error:.2e}");
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
    Some(Redilation { tau, of_steps: 6, progressive, dilation: rules(list) })
}

fn dispersion(tau: f64) -> Option<DispersionSettings> {
    let sites = ["down_blocks.2.downsamplers.**", "down_blocks.3.**", "mid_block.**", "up_blocks.{0,1}.**"];
    let sites = sites.map(str::to_owned).to_vec();
    Some(DispersionSettings { tau, of_steps: 6, sites, transform: Dispersion::PAPER })
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
            assert!((a - b).abs() <= 2e-6, "{name}: {a} {b}");
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
                assert!((a - b).abs() <= 2e-6, "{prefix}: {a} {b}");
            }
        }
    }
}

#[test]
fn text() {
    let want = golden("sd15/text");
    let prompts = [
        "a professional photograph of an astronaut riding a horse",
        "",
        "A corgi sits on a beach chair on a beautiful beach, with palm trees behind, high details",
        "Miniature house with plants in the potted area, hyper realism, dramatic ambient lighting, high detail",
        "blurry, low quality, watermark",
    ];
    let tokenizer = ClipTokenizer::open(&data("models/tiny-sd15/tokenizer")).unwrap();
    let ids: Vec<Vec<i64>> = want["input_ids"].to_vec2().unwrap();
    for (row, prompt) in prompts.iter().enumerate() {
        let got: Vec<i64> = tokenizer.encode(prompt).unwrap().into_iter().map(i64::from).collect();
        assert_eq!(got, ids[row], "{prompt}");
        let got = pipeline().embed(prompt).unwrap();
        check("text", &got, &want["last_hidden_state"].narrow(0, row, 1).unwrap());
    }
}

#[test]
fn unet() {
    let want = golden("sd15/unet");
    let unet = &pipeline().unet;
    let cases =
        [("base_t981", 981), ("base_t1", 1), ("x2_t500", 500), ("nonsq_24x40_t741", 741), ("odd_20x28_t261", 261), ("odd_22x30_t621", 621)];
    for (case, timestep) in cases {
        let at = |part: &str| &want[&format!("{case}.{part}")];
        let got = unet.forward(at("sample"), timestep, at("context"), &Plan::plain(&unet.sites)).unwrap();
        check(case, &got, at("out"));
    }
    let want = golden("sd15/unet_taps");
    let mut seen = 0;
    let mut see = |path: &str, got: &Tensor| {
        check(path, got, &want[&format!("tap.{path}")]);
        seen += 1;
    };
    unet.forward_observed(&want["sample"], 401, &want["context"], &Plan::plain(&unet.sites), &mut see).unwrap();
    assert_eq!(seen, 12);
}

#[test]
fn redilated_unet() {
    let want = golden("scalecrafter/unet_sd15");
    let unet = &pipeline().unet;
    let cases = [
        ("f2", Settings { redilation: redilation(6.0, false, &uniform(2.0)), ..Settings::default() }),
        ("f2p5", Settings { redilation: redilation(6.0, false, &uniform(2.5)), ..Settings::default() }),
        ("f234", Settings { redilation: redilation(6.0, false, &GRADED), ..Settings::default() }),
        ("f234_disperse", Settings { redilation: redilation(6.0, false, &GRADED), dispersion: dispersion(6.0), ..Settings::default() }),
    ];
    for (case, settings) in cases {
        let method = method(settings);
        for (size, timestep) in [("48x48", 701), ("20x28", 601)] {
            let at = |part: &str| &want[&format!("{size}.{part}")];
            let moment = crate::plan::Moment { step: 0, n_steps: 6, timestep, latent: (32, 32), native: (32, 32), guidance_scale: 1.0 };
            let passes = method.passes(&unet.sites, &moment);
            let got = unet.forward(at("sample"), timestep, at("context"), &passes[0].plan).unwrap();
            check(&format!("{size}.{case}"), &got, at(&format!("{case}.out")));
        }
    }
}

#[test]
fn attention_scale() {
    let want = golden("scalecrafter/scaled_attn");
    let unet = &pipeline().unet;
    let (sample, context) = (&want["sd15.sample"], &want["sd15.context"]);
    let method = method(Settings { attention_scale: Some(crate::methods::AttentionScale {}), ..Settings::default() });
    let plain = unet.forward(sample, 601, context, &Plan::plain(&unet.sites)).unwrap();
    check("plain", &plain, &want["sd15.plain.out"]);
    // The case's ratio of areas, whatever the true latent size: a native size that has it.
    for (case, native) in [("c0", (16, 20)), ("c1", (16, 40)), ("c2", (8, 10))] {
        let moment = crate::plan::Moment { step: 0, n_steps: 1, timestep: 601, latent: (32, 40), native, guidance_scale: 1.0 };
        let plan = &method.passes(&unet.sites, &moment)[0].plan;
        let got = unet.forward(sample, 601, context, plan).unwrap();
        check(case, &got, &want[&format!("sd15.{case}.out")]);
        assert!(difference(&got, &plain) > 1e-3, "{case}: the softmax scale must reach the network");
    }
}

#[test]
fn convolutions() {
    let conv = |weight: &Tensor, bias: &Tensor, stride: usize| crate::unet::SiteConv::bare(weight.clone(), bias.clone(), stride);
    let want = golden("scalecrafter/redilate_conv");
    let mut n = 0;
    for (name, want_y) in want.iter().filter(|(k, _)| k.starts_with('s')) {
        let (stride, rest) = name[1..].split_once(".f").unwrap();
        let (factor, size) = rest.rsplit_once('.').unwrap();
        let dilation = factor.parse().ok().map(|f| Dilation::new(f).unwrap());
        let conv = conv(&want["weight"], &want["bias"], stride.parse().unwrap());
        let action = ConvAction { kernel: Kernel::Trained, dilation };
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
        let action = ConvAction { kernel: Kernel::Dispersed(Dispersion::PAPER), dilation };
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

#[test]
fn ddim_steps() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("ddim_sd_eta0", 0.0, "epsilon", "leading"),
        ("ddim_sd_eta1", 1.0, "epsilon", "leading"),
        ("ddim_trailing_eta0", 0.0, "epsilon", "trailing"),
        ("ddim_v_eta0", 0.0, "v_prediction", "leading"),
        ("ddim_v_eta1", 1.0, "v_prediction", "leading"),
        ("ddim_xl_eta1", 1.0, "epsilon", "leading"),
    ];
    for (case, eta, prediction, spacing) in cases {
        let want = golden(&format!("schedulers/{case}"));
        let file = folder.path().join(format!("{case}.json"));
        let config = serde_json::json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false, "steps_offset": 1,
            "set_alpha_to_one": false, "prediction_type": prediction, "timestep_spacing": spacing,
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let schedule = Schedule::open(&file).unwrap();
        for (a, b) in schedule.alphas_cumprod.iter().zip(values(&want["alphas_cumprod"])) {
            assert!((f64::from(*a) - b).abs() < 1e-6);
        }
        for n in [10usize, 7] {
            let at = |part: &str| &want[&format!("n{n}.{part}")];
            let timesteps = schedule.timesteps(n);
            assert_eq!(timesteps.iter().map(|&t| t as f64).collect::<Vec<_>>(), values(at("timesteps")), "{case}");
            let mut x = at("init").clone();
            for (i, &t) in timesteps.iter().enumerate() {
                let noise = want.get(&format!("n{n}.noise")).map(|n| n.get(i).unwrap());
                let output = at("model_outputs").get(i).unwrap();
                x = schedule.ddim_step(&x, &output, t, n, eta, noise.as_ref()).unwrap();
                check(&format!("{case} {n} {i}"), &x, &at("samples").get(i).unwrap());
            }
        }
    }
}

#[test]
fn autoencoder() {
    let want = golden("sd15/vae");
    for i in 0..2 {
        let got = pipeline().vae.decode(&want[&format!("decode{i}.latents")]).unwrap();
        check("decode", &got, &want[&format!("decode{i}.image")]);
        let (mean, logvar) = pipeline().vae.encode(&want[&format!("encode{i}.image")]).unwrap();
        check("encode mean", &mean, &want[&format!("encode{i}.mean")]);
        check("encode logvar", &logvar, &want[&format!("encode{i}.logvar")]);
    }
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
        guidance_scale: 7.5,
        guidance_rescale: 0.0,
        eta,
        seed: 0,
    }
}

/// Runs a loop on the golden's randomness and compares every recorded stage of batch row `row`.
fn check_loop(path: &str, want: &HashMap<String, Tensor>, request: &Request, method: &Method, row: usize) {
    let pick = |t: &Tensor| t.narrow(0, row, 1).unwrap();
    let injected =
        Injected { init_latents: Some(pick(&want["init_latents"])), step_noise: want.get("noise").map(|n| n.narrow(1, row, 1).unwrap()) };
    let mut trace = Trace::default();
    pipeline().generate_with(request, method, &injected, Some(&mut trace)).unwrap();
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
    let plain = method(Settings::default());
    for (name, eta, rescale, negative) in [
        ("loop_ddim_eta0", 0.0, 0.0, "blurry, low quality, watermark"),
        ("loop_ddim_eta1", 1.0, 0.0, ""),
        ("loop_ddim_eta0_rescale", 0.0, 0.7, "blurry, low quality, watermark"),
    ] {
        let want = golden(&format!("sd15/{name}"));
        let mut request = request(&want["init_latents"], ASTRONAUT, 10, eta);
        request.guidance_rescale = rescale;
        request.negative_prompt = negative.into();
        check_loop(name, &want, &request, &plain, 0);
    }
}

#[test]
fn official_scalecrafter_loops() {
    let graded_weak = &GRADED[1..6];
    let cases = [
        ("loop_sd15_dilate", 1.0, 0.0, Settings { redilation: redilation(4.0, false, &uniform(2.0)), ..Settings::default() }),
        ("loop_sd15_eta0_odd", 0.0, 0.7, Settings { redilation: redilation(4.0, false, &uniform(2.5)), ..Settings::default() }),
        (
            "loop_sd15_ndcfg_prog_b2",
            1.0,
            0.0,
            Settings {
                redilation: redilation(5.0, true, &GRADED),
                noise_damped_guidance: redilation(3.0, true, graded_weak),
                ..Settings::default()
            },
        ),
        (
            "loop_sd15_disperse",
            1.0,
            0.0,
            Settings {
                redilation: redilation(5.0, true, &GRADED),
                noise_damped_guidance: redilation(3.0, true, graded_weak),
                dispersion: dispersion(2.0),
                ..Settings::default()
            },
        ),
    ];
    for (name, eta, rescale, settings) in cases {
        let want = golden(&format!("scalecrafter/{name}"));
        let method = method(settings);
        for row in 0..want["init_latents"].dims()[0] {
            let prompt = if row == 0 { ASTRONAUT } else { CORGI };
            let mut request = request(&want["init_latents"], prompt, 6, eta);
            request.guidance_rescale = rescale;
            check_loop(name, &want, &request, &method, row);
        }
    }
}

#[test]
fn plain_plans_are_bit_identical_to_the_network() {
    let want = golden("sd15/unet");
    let unet = &pipeline().unet;
    let (x, text) = (&want["base_t1.sample"], &want["base_t1.context"]);
    // A method after its last active step, and one at the training size, plan nothing.
    let method = method(Settings { redilation: redilation(3.0, true, &GRADED), ..Settings::default() });
    let moment = crate::plan::Moment { step: 3, n_steps: 6, timestep: 1, latent: (32, 32), native: (32, 32), guidance_scale: 7.5 };
    let passes = method.passes(&unet.sites, &moment);
    assert!(passes.iter().all(|p| p.plan.is_plain()));
    let a = unet.forward(x, 1, text, &passes[0].plan).unwrap();
    let b = unet.forward(x, 1, text, &Plan::plain(&unet.sites)).unwrap();
    assert_eq!(values(&a), values(&b));
}

#[test]
fn presets_name_the_published_sites() {
    let sites = pipeline().sites();
    let preset = |name: &str| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/methods").join(format!("{name}.yaml"));
        MethodSpec::parse(&std::fs::read_to_string(&file).unwrap(), &file).unwrap()
    };
    // 50 convolutions are open to methods in the SD layout, conv_in and conv_out apart.
    assert_eq!(sites.convs.len(), 52);
    let count = |plan: &Plan| plan.convs.iter().filter(|a| a.dilation.is_some()).count();
    let at = |step| crate::plan::Moment { step, n_steps: 50, timestep: 0, latent: (64, 64), native: (32, 32), guidance_scale: 7.5 };
    for (scale, tau) in [(4.0, 30), (6.25, 35), (8.0, 35), (16.0, 35)] {
        let method = preset("scalecrafter").resolve("sd15", scale, sites).unwrap();
        for step in 0..50 {
            let passes = method.passes(sites, &at(step));
            let damped = scale >= 8.0 && step < 35;
            assert_eq!(passes.len(), if damped { 3 } else { 2 });
            assert!((passes.iter().map(|p| p.weight).sum::<f64>() - 1.0).abs() < 1e-12);
            assert_eq!(count(&passes[0].plan), if step < tau { 39 } else { 0 }, "{scale} {step}");
            if damped {
                assert_eq!(count(&passes[2].plan), 27);
            }
        }
    }
    // d = 4 and tau = 35: nine steps of 4, nine of 3, seventeen of 2, then plain.
    let method = preset("redilation").resolve("sd15", 16.0, sites).unwrap();
    let mid = sites.convs.iter().position(|s| s.path == "mid_block.resnets.0.conv1").unwrap();
    let factors: Vec<f64> = (0..50).map(|i| method.passes(sites, &at(i))[0].plan.convs[mid].dilation.map_or(1.0, Dilation::get)).collect();
    let runs = |f: f64| factors.iter().filter(|d| **d == f).count();
    assert_eq!([runs(4.0), runs(3.0), runs(2.0), runs(1.0)], [9, 9, 17, 15]);
    // Dispersion halves where it acts.
    let method = preset("scalecrafter-disperse").resolve("sd15", 16.0, sites).unwrap();
    let passes = method.passes(sites, &at(0));
    let dispersed = |p: &Plan| p.convs.iter().filter(|a| a.kernel != Kernel::Trained).count();
    assert_eq!([dispersed(&passes[0].plan), dispersed(&passes[2].plan)], [23, 23]);
    assert_eq!(passes[0].plan.convs[mid].dilation.map(Dilation::get), Some(2.0));
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
    refuse(Settings { noise_damped_guidance: base(), ..Settings::default() }, "without `redilation`");
    let far = DispersionSettings { sites: vec!["conv_out".into()], ..dispersion(3.0).unwrap() };
    refuse(Settings { redilation: base(), dispersion: Some(far), ..Settings::default() }, "in no dilation list");
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
