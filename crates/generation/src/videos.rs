//! Videos against diffusers on tiny random-weight networks of both layouts, and what must hold of any. `scripts/video_goldens.py`
//! made the goldens.

use crate::checkpoint::LoadOptions;
use crate::methods::{Method, Redilation, Settings};
use crate::parity::{check, data, golden};
use crate::pipeline::{Injected, Pipeline, Request, SizeConditioning, Trace};
use crate::plan::{Dilation, Plan};
use crate::sampler::{Sampler, ScheduleOptions, Spacing};
use crate::step::Moment;
use crate::unet::{Shown, Told, UNet};
use crate::{Seeding, VaeDecode};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const PROMPT: &str = "A Corgi dog riding a bike in Times Square, wearing sunglasses and a beach hat";

const GRADED: [(&str, f64); 5] =
    [("down_blocks.1.**", 2.0), ("down_blocks.2.**", 2.5), ("mid_block.**", 3.0), ("up_blocks.1.**", 2.5), ("up_blocks.2.**", 2.0)];

fn adapter() -> PathBuf {
    data("models/tiny-motion-adapter")
}

fn with_adapter(folder: &Path) -> LoadOptions {
    LoadOptions { motion_adapter: Some(folder.to_owned()), ..LoadOptions::default() }
}

fn motion_unet(folder: &Path) -> UNet {
    UNet::open(&data("models/tiny-sd15/unet"), &with_adapter(folder)).unwrap()
}

fn volume_unet() -> UNet {
    UNet::open(&data("models/tiny-modelscope/unet"), &LoadOptions::default()).unwrap()
}

/// The adapter again, its tensors changed, in a folder of its own.
fn changed(source: &Path, change: impl Fn(&str, &Tensor) -> Option<Tensor>, config: impl Fn(String) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let name = "diffusion_pytorch_model.safetensors";
    let tensors = candle_core::safetensors::load(source.join(name), &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> = tensors.into_iter().filter_map(|(k, v)| change(&k, &v).map(|v| (k, v))).collect();
    candle_core::safetensors::save(&tensors, folder.path().join(name)).unwrap();
    std::fs::write(folder.path().join("config.json"), config(std::fs::read_to_string(source.join("config.json")).unwrap())).unwrap();
    folder
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A pipeline whose U-Net is base and adapter in one, as diffusers' `UNetMotionModel` writes them, changed or not.
fn merged(change: impl Fn(&mut HashMap<String, Tensor>), config: impl Fn(String) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in ["text_encoder", "tokenizer", "vae", "scheduler"] {
        copy(&data(&format!("models/tiny-sd15/{part}")), &folder.path().join(part));
    }
    // Such a folder's scheduler is taken as it is.
    let scheduler = folder.path().join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&scheduler).unwrap();
    assert!(text.contains("\"scaled_linear\""));
    std::fs::write(scheduler, text.replace("\"scaled_linear\"", "\"linear\"")).unwrap();
    let index = r#"{"_class_name": "AnimateDiffPipeline", "unet": ["diffusers", "UNetMotionModel"]}"#;
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    let unet = folder.path().join("unet");
    std::fs::create_dir(&unet).unwrap();
    let name = "diffusion_pytorch_model.safetensors";
    let mut tensors = candle_core::safetensors::load(data("models/tiny-sd15/unet").join(name), &Device::Cpu).unwrap();
    tensors.extend(candle_core::safetensors::load(adapter().join(name), &Device::Cpu).unwrap());
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, unet.join(name)).unwrap();
    let text = std::fs::read_to_string(data("models/tiny-motion-unet/config.json")).unwrap();
    std::fs::write(unet.join("config.json"), config(text)).unwrap();
    folder
}

#[test]
fn merged_networks_are_base_and_adapter() {
    let two = Pipeline::load_with(&data("models/tiny-sd15"), &with_adapter(&adapter())).unwrap();
    let folder = merged(|_| (), |config| config);
    let one = Pipeline::load(folder.path()).unwrap();
    assert_eq!((one.max_frames(), one.sites()), (8, two.sites()));
    for (method, request) in [(Method::direct(one.sites()), request(5, 31, 1.0)), (graded(one.sites()), request(3, 7, 0.0))] {
        let frames = |pipeline: &Pipeline| pipeline.generate_frames(&request, &method, &Injected::default(), None).unwrap();
        assert_eq!(frames(&one), frames(&two));
    }
    // The adapter that diffusers writes beside is in the network already.
    copy(&adapter(), &folder.path().join("motion_adapter"));
    assert_eq!(Pipeline::load(folder.path()).unwrap().digest(), one.digest());

    let refuse = |folder: &tempfile::TempDir, options: &LoadOptions, file: &str, fragment: &str| {
        let message = Pipeline::load_with(folder.path(), options).map(drop).unwrap_err().to_string();
        assert!(message.contains(&format!("unet/{file}")) && message.contains(fragment), "{message}");
        assert!(!message.contains('\n'), "{message}");
    };
    refuse(&folder, &with_adapter(&adapter()), "config.json", "has layers over frames of its own, expected no motion adapter");
    let (plain, weights) = (LoadOptions::default(), "diffusion_pytorch_model.safetensors");
    let key = "up_blocks.1.motion_modules.2.transformer_blocks.0.attn1.to_q.weight";
    refuse(&merged(|tensors| drop(tensors.remove(key)), |config| config), &plain, weights, key);
    let other = |tensors: &mut HashMap<String, Tensor>| {
        let tensor = tensors.remove(key).unwrap();
        tensors.insert(key.replace("motion_modules.2", "motion_modules.3"), tensor.clone());
        tensors.insert(key.to_owned(), tensor);
    };
    refuse(&merged(other, |config| config), &plain, weights, "have no place in this architecture, first `up_blocks.1.motion_modules.3");
    let narrow = |tensors: &mut HashMap<String, Tensor>| drop(tensors.insert(key.to_owned(), tensors[key].narrow(0, 0, 8).unwrap()));
    refuse(&merged(narrow, |config| config), &plain, weights, key);
    for (from, to, file, fragment) in [
        ("_seq_length\": 8", "_seq_length\": 9", weights, "pos_embed.pe` has shape"),
        (
            "use_motion_mid_block\": true",
            "use_motion_mid_block\": false",
            weights,
            "no place in this architecture, first `mid_block.motion",
        ),
        ("motion_num_attention_heads\": 4", "motion_num_attention_heads\": 3", "config.json", "do not divide channels"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "config.json", "`num_attention_heads` is 5"),
        ("reverse_motion_num_attention_heads\": null", "reverse_motion_num_attention_heads\": 4", "config.json", "`reverse_motion"),
        ("temporal_transformer_layers_per_block\": 1", "temporal_transformer_layers_per_block\": 2", "config.json", "`temporal_transf"),
        ("mid_block_layers\": 1", "mid_block_layers\": 2", "config.json", "`mid_block_layers` is 2"),
        ("layers_per_block\": 2", "layers_per_block\": [2, 2, 2, 3]", "config.json", "the same count"),
        ("\"UpBlockMotion\"", "\"UpBlock2D\"", "config.json", "CrossAttnUpBlockMotion or UpBlockMotion"),
    ] {
        let changed = |config: String| {
            assert!(config.contains(from), "{from}");
            config.replacen(from, to, 1)
        };
        refuse(&merged(|_| (), changed), &plain, file, fragment);
    }
    // Counts by block that are all the same are one count; keys of the image network's file may be left in.
    let lists = |config: String| config.replacen("layers_per_block\": 2", "layers_per_block\": [2, 2, 2, 2], \"attention_head_dim\": 8", 1);
    assert_eq!(Pipeline::load(merged(|_| (), lists).path()).unwrap().sites(), one.sites());
}

/// ModelScope's U-Net and scheduler with the rest of a checkpoint.
fn modelscope() -> (tempfile::TempDir, Pipeline) {
    let folder = tempfile::tempdir().unwrap();
    for (from, parts) in [("tiny-sd15", &["text_encoder", "tokenizer", "vae"][..]), ("tiny-modelscope", &["unet", "scheduler"])] {
        for part in parts {
            copy(&data(&format!("models/{from}/{part}")), &folder.path().join(part));
        }
    }
    let pipeline = Pipeline::load(folder.path()).unwrap();
    (folder, pipeline)
}

/// `(videos, c, frames, h, w)` as the network takes it.
fn frames_first(videos: &Tensor) -> Tensor {
    let (n, c, frames, h, w) = videos.dims5().unwrap();
    videos.transpose(1, 2).unwrap().contiguous().unwrap().reshape((n * frames, c, h, w)).unwrap()
}

/// The text of each video, for each of its frames.
fn told(context: &Tensor, frames: usize) -> Told {
    let rows: Vec<Tensor> = (0..context.dim(0).unwrap()).flat_map(|i| vec![context.narrow(0, i, 1).unwrap(); frames]).collect();
    Told { text: Tensor::cat(&rows, 0).unwrap(), added: None, class: None }
}

fn run(unet: &UNet, sample: &Tensor, context: &Tensor, timestep: f64, plan: &Plan) -> Tensor {
    let frames = sample.dims()[2];
    let shown = Shown { now: &frames_first(sample), before: None, frames };
    unet.forward_observed(&shown, timestep, &told(context, frames), plan, &mut |_, _| {}).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn graded(sites: &crate::SiteTable) -> Method {
    let dilation = GRADED.iter().map(|(site, d)| ((*site).to_owned(), Dilation::new(*d).unwrap())).collect();
    let redilation = Some(Redilation { tau: 6.0, of_steps: 6, progressive: false, dilation, unmatched: Vec::new() });
    Method::new("test", Settings { redilation, ..Settings::default() }, sites).unwrap()
}

fn first_plan(method: &Method, unet: &UNet, latent: (usize, usize)) -> Plan {
    let moment = Moment { n_steps: 6, timestep: 701.0, latent, native: (32, 32), guidance_scale: 1.0, ..Moment::default() };
    method.passes(&unet.sites, &moment).remove(0).plan
}

#[test]
fn unets() {
    for (name, mut unet) in [("motion", motion_unet(&adapter())), ("modelscope", volume_unet())] {
        let want = golden(&format!("video/unet_{name}"));
        let plain = Plan::plain(&unet.sites);
        let at = |case: &str, part: &str| &want[&format!("{case}.{part}")];
        for (case, timestep) in [("f5", 981.0), ("f1", 1.0), ("odd", 501.0), ("f8", 261.0)] {
            let got = run(&unet, at(case, "sample"), at(case, "context"), timestep, &plain);
            check(&format!("{name} {case}"), &got, &frames_first(at(case, "out")));
        }
        // The oracle: diffusers' network with the same convolutions re-dilated.
        let plan = first_plan(&graded(&unet.sites), &unet, (24, 16));
        let dilated = |unet: &UNet| run(unet, at("dilated", "sample"), at("dilated", "context"), 701.0, &plan);
        let whole = dilated(&unet);
        check(&format!("{name} dilated"), &whole, &frames_first(at("dilated", "out")));
        // A few frames at a time are all frames at once.
        for strip in [1, 8 * 24 * 16 * 2] {
            unet.strip = strip;
            assert_eq!(values(&dilated(&unet)), values(&whole), "{name}, {strip} elements at a time");
        }
    }
}

/// Both kinds of layers over frames in whole networks at a size that takes the emulator of GPUs seconds.
#[test]
fn layers_over_frames() {
    for (name, unet) in [("motion", motion_unet(&adapter())), ("modelscope", volume_unet())] {
        let want = golden(&format!("video/unet_{name}"));
        let got = run(&unet, &want["odd.sample"], &want["odd.context"], 501.0, &Plan::plain(&unet.sites));
        check(name, &got, &frames_first(&want["odd.out"]));
    }
}

/// Adapters of the third version have no module in the middle, and those of other programs no table of positions.
#[test]
fn adapters_of_other_versions() {
    let with = |keep: fn(&str) -> bool, mid: &str| {
        let folder = changed(&adapter(), |k, v| keep(k).then(|| v.clone()), |config| config.replace("_block\": true", mid));
        motion_unet(folder.path())
    };
    let want = golden("video/unet_motion");
    let out = |unet: &UNet| run(unet, &want["f5.sample"], &want["f5.context"], 981.0, &Plan::plain(&unet.sites));
    check("computed positions", &out(&with(|k| !k.ends_with(".pe"), "_block\": true")), &frames_first(&want["f5.out"]));
    let without = with(|k| !k.starts_with("mid_block"), "_block\": false");
    assert_eq!(without.sites.temporals.len() + 1, motion_unet(&adapter()).sites.temporals.len());
    assert_ne!(values(&out(&without)), values(&frames_first(&want["f5.out"])));
}

/// With what begins its training at zero at zero, a video network is the image network on every frame, re-dilated or not.
#[test]
fn without_motion_frames_are_images() {
    let image = UNet::open(&data("models/tiny-sd15/unet"), &LoadOptions::default()).unwrap();
    let zero = |k: &str, v: &Tensor| Some(if k.contains("proj_out") { v.zeros_like().unwrap() } else { v.clone() });
    let folder = changed(&adapter(), zero, |config| config);
    let video = motion_unet(folder.path());
    let want = golden("video/unet_motion");
    let (sample, context) = (&want["dilated.sample"], &want["dilated.context"]);
    // Its layers over pixels are the same sites.
    assert_eq!((&image.sites.convs, &image.sites.attentions), (&video.sites.convs, &video.sites.attentions));
    assert_eq!(video.sites.temporals.len(), 21);
    for method in [Method::direct(&image.sites), graded(&image.sites)] {
        let plan = first_plan(&method, &image, (24, 16));
        let frames = frames_first(sample);
        let images = image.forward(&frames, 701.0, &told(context, 3), &plan).unwrap();
        assert_eq!(values(&run(&video, sample, context, 701.0, &plan)), values(&images));
    }
}

/// Attention without positions does not know the order of frames; convolutions along frames do.
#[test]
fn only_convolutions_along_frames_know_their_order() {
    let want = golden("video/unet_modelscope");
    let (sample, context) = (&want["f5.sample"].narrow(0, 0, 1).unwrap(), &want["f5.context"].narrow(0, 0, 1).unwrap());
    let order = Tensor::new(&[3u32, 0, 4, 2, 1], &Device::Cpu).unwrap();
    let shuffled = sample.index_select(&order, 2).unwrap();
    let both = |unet: &UNet| {
        let plain = Plan::plain(&unet.sites);
        let out = run(unet, sample, context, 981.0, &plain).index_select(&order, 0).unwrap();
        (run(unet, &shuffled, context, 981.0, &plain), out)
    };
    let zero =
        |k: &str, v: &Tensor| Some(if k.contains("temp_convs") && k.contains("conv4") { v.zeros_like().unwrap() } else { v.clone() });
    let folder = changed(&data("models/tiny-modelscope/unet"), zero, |config| config);
    let (got, expected) = both(&UNet::open(folder.path(), &LoadOptions::default()).unwrap());
    check("shuffled frames", &got, &expected);
    let (got, expected) = both(&volume_unet());
    let distance = (got - &expected).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(distance > 1e-4, "{distance}");
}

fn request(frames: usize, seed: u64, eta: f64) -> Request {
    Request {
        prompt: PROMPT.into(),
        negative_prompt: String::new(),
        width: 96,
        height: 64,
        steps: 6,
        sampler: Sampler::Ddim,
        schedule: ScheduleOptions { timestep_spacing: Some(Spacing::Linspace), ..ScheduleOptions::default() },
        guidance_scale: 7.5,
        guidance_rescale: 0.0,
        eta,
        seed,
        size_conditioning: SizeConditioning::Target,
        vae_decode: VaeDecode::Whole,
        seeding: Seeding::PerImage,
        frames,
    }
}

/// Whole runs of diffusers' pipelines from a seed: the first noise to the last bit, latents, frames.
#[test]
fn loops() {
    let motion = Pipeline::load_with(&data("models/tiny-sd15"), &with_adapter(&adapter())).unwrap();
    let (_folder, modelscope) = modelscope();
    assert_eq!((motion.max_frames(), modelscope.max_frames()), (8, usize::MAX));
    for eta in [0.0, 1.0] {
        let second = Request { width: 80, schedule: ScheduleOptions::default(), ..request(4, 32, eta) };
        for (name, pipeline, request) in [("motion", &motion, request(5, 31, eta)), ("modelscope", &modelscope, second)] {
            let name = format!("video/loop_{name}_eta{eta}");
            let want = golden(&name);
            let mut trace = Trace::default();
            let method = Method::direct(pipeline.sites());
            let frames = pipeline.generate_frames(&request, &method, &Injected::default(), Some(&mut trace)).unwrap();
            assert_eq!(frames.len(), request.frames);
            assert_eq!(values(&trace.tensors["init_latents"]), values(&want["init_latents"]), "{name}");
            for (key, want) in want.iter().filter(|(key, _)| key.starts_with("latents.")) {
                check(&format!("{name} {key}"), &trace.tensors[key], want);
            }
            let Some(images) = want.get("frames") else { continue };
            for (i, frame) in frames.iter().enumerate() {
                let want = images.narrow(2, i, 1).unwrap().squeeze(2).unwrap();
                let latents = want_frame(&trace.tensors["final_latents"], i);
                let got = pipeline.vae.decode(&(latents / pipeline.vae.scaling_factor).unwrap()).unwrap();
                check(&format!("{name} frame {i}"), &got, &want);
                let bytes = crate::Rgb::of_one(&want).unwrap();
                let off = frame.data.iter().zip(&bytes.data).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(off <= 1, "{name} frame {i}: {off}");
            }
            // What is given is what is drawn.
            let injected = Injected {
                init_latents: Some(trace.tensors["init_latents"].clone()),
                step_noise: trace.tensors.get("noise").cloned(),
                ..Injected::default()
            };
            let other = Request { seed: 0, ..request.clone() };
            assert_eq!(pipeline.generate_frames(&other, &method, &injected, None).unwrap(), frames);
        }
    }
}

fn want_frame(video: &Tensor, i: usize) -> Tensor {
    video.narrow(2, i, 1).unwrap().squeeze(2).unwrap()
}

#[test]
fn what_a_network_cannot_do_is_refused() {
    let load = |options: &LoadOptions| Pipeline::load_with(&data("models/tiny-sd15"), options);
    let refuse = |result: Result<(), crate::Error>, fragment: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(fragment), "{message}");
    };
    let (image, motion) = (load(&LoadOptions::default()).unwrap(), load(&with_adapter(&adapter())).unwrap());
    assert_ne!(image.digest(), motion.digest());
    let direct = Method::direct(image.sites());
    refuse(image.check(&request(2, 0, 0.0), &direct), "expected 1: this network has no layers over frames");
    refuse(motion.check(&request(9, 0, 0.0), &direct), "from 1 to the motion modules' 8");
    refuse(motion.check(&request(0, 0, 0.0), &direct), "`frames` is 0");
    refuse(motion.generate(&request(2, 0, 0.0), &direct, None).map(drop), "expected 1 of an image");
    let given = Injected { init_latents: Some(Tensor::zeros((1, 4, 8, 12), DType::F32, &Device::Cpu).unwrap()), ..Injected::default() };
    refuse(motion.generate_frames(&request(2, 0, 0.0), &direct, &given, None).map(drop), "expected shape [1, 4, 2, 8, 12]");
    for (key, value, fragment) in [
        ("\"conv_in_channels\": null", "\"conv_in_channels\": 9", "`conv_in_channels` is 9"),
        ("\"motion_layers_per_block\": 2", "\"motion_layers_per_block\": 3", "expected the U-Net's [2, 2, 2, 2]"),
        ("\"motion_num_attention_heads\": 4", "\"motion_num_attention_heads\": 3", "do not divide channels"),
        ("\"motion_max_seq_length\": 8", "\"motion_max_seq_length\": 9", "pos_embed.pe` has shape"),
        ("_block\": true", "_block\": false", "have no place in this architecture, first `mid_block"),
        ("      24,\n    24\n", "    24,\n    32\n", "expected the U-Net's"),
    ] {
        let folder = changed(&adapter(), |_, v| Some(v.clone()), |config| config.replace(key.trim_start(), value.trim_start()));
        refuse(load(&with_adapter(folder.path())).map(drop), fragment);
    }
    let (folder, _) = modelscope();
    refuse(Pipeline::load_with(folder.path(), &with_adapter(&adapter())).map(drop), "expected no motion adapter");
    let rule = [("down_blocks.0.motion_modules.0".to_owned(), Dilation::new(2.0).unwrap())].into();
    let redilation = Some(Redilation { tau: 6.0, of_steps: 6, progressive: false, dilation: rule, unmatched: Vec::new() });
    let settings = Settings { redilation, ..Settings::default() };
    refuse(Method::new("m", settings, motion.sites()).map(drop), "works over frames and stays as trained");
}
