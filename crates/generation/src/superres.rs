//! Diffusion super-resolution: parity with diffusers' `StableDiffusionUpscalePipeline` on a tiny random-weight checkpoint, and as a method.

use crate::journey::{ImageFilter, Reduce, Tile, Upscaling};
use crate::methods::{BaseSize, Settings, Upscale};
use crate::parity::{check, data, golden};
use crate::pipeline::{Enlarging, Pipeline, Request, Rgb, Seeding, SizeConditioning, Trace, Upscaler};
use crate::plan::Plan;
use crate::sampler::{Sampler, ScheduleOptions};
use crate::unet::{Shown, Told};
use crate::vae::VaeDecode;
use crate::{LoadOptions, Method};
use candle_core::Tensor;
use std::sync::{Arc, OnceLock};

fn upscaler() -> &'static Arc<Upscaler> {
    static UPSCALER: OnceLock<Arc<Upscaler>> = OnceLock::new();
    UPSCALER.get_or_init(|| Arc::new(Upscaler::load_with(&data("models/tiny-upscaler"), &LoadOptions::default()).unwrap()))
}

fn settings() -> Upscaling {
    serde_yaml::from_str("{checkpoint: tiny}").unwrap()
}

#[test]
fn the_network_is_that_of_diffusers() {
    let (u, want) = (upscaler(), golden("upscaler/unet"));
    assert_eq!((u.factor(), u.vae.scaling_factor, u.max_noise_level), (4, 0.08333, 350));
    let plan = Plan::plain(&u.unet.sites);
    // Only the last level down, the middle and the first level up attend to the map itself.
    assert_eq!(u.unet.sites.attentions.len(), 2 + 1 + 3);
    for i in 0..5 {
        let at = want[&format!("{i}.at")].to_vec1::<f32>().unwrap();
        let told = Told { text: want[&format!("{i}.context")].clone(), added: None, class: Some(at[1] as usize) };
        let mut see = |name: &str, got: &Tensor| {
            if let Some(want) = want.get(&format!("tap.{name}")).filter(|_| i == 0) {
                // The time embedding is one row for the batch here.
                let rows = got.dims()[0].min(want.dims()[0]);
                check(name, &got.to_device(&candle_core::Device::Cpu).unwrap(), &want.narrow(0, 0, rows).unwrap());
            }
        };
        let shown = Shown { now: &want[&format!("{i}.x")], before: None, frames: 1 };
        let got = u.unet.forward_observed(&shown, f64::from(at[0]), &told, &plan, &mut see).unwrap();
        check(&format!("call {i}"), &got, &want[&format!("{i}.out")]);
    }
}

#[test]
fn whole_runs_are_those_of_diffusers() {
    for (name, changed) in [
        ("loop_guided", Upscaling { steps: 6, ..settings() }),
        ("loop_noisy", Upscaling { steps: 5, guidance_scale: 1.0, noise_level: 300, eta: 0.5, ..settings() }),
    ] {
        let want = golden(&format!("upscaler/{name}"));
        let (height, width, _) = want["image"].dims3().unwrap();
        let bytes = want["image"].flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(|v| v as u8).collect();
        let image = Rgb { width: width as u32, height: height as u32, data: bytes };
        let how = Enlarging {
            prompt: "a corgi wearing a tiny hat",
            negative_prompt: "blurry, low quality, watermark",
            seed: 7,
            settings: &changed,
            limit: usize::MAX,
        };
        let mut trace = Trace::default();
        let got = upscaler().enlarge(&image, &how, Some(&mut trace)).unwrap();
        let level = f64::from(upscaler().noise[changed.noise_level]);
        let beside = ((&trace.tensors["upscale.image"] * level.sqrt()).unwrap()
            + (&trace.tensors["upscale.image_noise"] * (1.0 - level).sqrt()).unwrap())
        .unwrap();
        check("the noised image", &beside, &want["beside"]);
        for i in 0..changed.steps {
            check(&format!("{name}, step {i}"), &trace.tensors[&format!("upscale.latents.{i}")], &want[&format!("latents.{i}")]);
        }
        assert_eq!((got.width as usize, got.height as usize), (4 * width, 4 * height));
        let result = want["result"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let worst = got.data.iter().zip(result).map(|(a, b)| (f32::from(*a) - 255.0 * b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.52, "{name}: {worst} of 255");
    }
}

#[test]
fn sizes_reach_the_target() {
    let sizes = |from, to, reduce| upscaler().sizes(from, to, reduce);
    assert_eq!(sizes((64, 64), (256, 256), Reduce::Output), [(64, 64)]);
    assert_eq!(sizes((64, 64), (128, 128), Reduce::Output), [(64, 64)]);
    assert_eq!(sizes((64, 64), (160, 160), Reduce::Input), [(40, 40)]);
    assert_eq!(sizes((128, 64), (256, 128), Reduce::Input), [(64, 32)]);
    assert_eq!(sizes((64, 64), (512, 512), Reduce::Output), [(64, 64), (256, 256)]);
    assert_eq!(sizes((64, 64), (512, 512), Reduce::Input), [(32, 32), (128, 128)]);
}

/// A method on a checkpoint of its own: the plain image of the training size, enlarged.
#[test]
fn methods_enlarge_what_plain_sampling_makes() {
    let mut pipeline = Pipeline::load(&data("models/tiny-sd15")).unwrap();
    let (side, _) = pipeline.native_size();
    let request = |side: u32| Request {
        prompt: "a cat".into(),
        negative_prompt: String::new(),
        width: side,
        height: side,
        frames: 1,
        steps: 2,
        sampler: Sampler::Ddim,
        schedule: ScheduleOptions::default(),
        guidance_scale: 3.0,
        guidance_rescale: 0.0,
        eta: 1.0,
        seed: 3,
        size_conditioning: SizeConditioning::Target,
        vae_decode: VaeDecode::Whole,
        seeding: Seeding::PerImage,
    };
    let method = |filter, upscaler| {
        let upscale = Some(Upscale { base: BaseSize::ShorterSide, filter, upscaler });
        Method::new("up", Settings { upscale, ..Settings::default() }, pipeline.sites()).unwrap()
    };
    let plain = Method::direct(pipeline.sites());
    let by_filter = [ImageFilter::Bicubic, ImageFilter::Lanczos].map(|filter| (filter, method(filter, None)));
    let by_network = method(ImageFilter::Lanczos, Some(Upscaling { steps: 1, reduce: Reduce::Input, ..settings() }));
    let base = pipeline.generate(&request(side), &plain, None).unwrap();
    for (filter, method) in &by_filter {
        assert_eq!(pipeline.generate(&request(side), method, None).unwrap(), base, "nothing to enlarge");
        let large = pipeline.generate(&request(2 * side), method, None).unwrap();
        assert_eq!(large, base.clone().resized((2 * side, 2 * side), *filter).unwrap());
        assert_ne!(large, pipeline.generate(&request(2 * side), &plain, None).unwrap());
    }
    let message = pipeline.generate(&request(2 * side), &by_network, None).unwrap_err().to_string();
    assert!(message.contains("`tiny`") && message.contains("lent"), "{message}");
    pipeline.lend_upscaler("tiny", Arc::clone(upscaler()));
    let enlarged = pipeline.generate_batch(&[&request(2 * side)], &by_network).unwrap().remove(0);
    // Half the size first, so that four times that is the target.
    let half = base.resized((side / 2, side / 2), ImageFilter::Lanczos).unwrap();
    let settings = Upscaling { steps: 1, ..settings() };
    let how = Enlarging { prompt: "a cat", negative_prompt: "", seed: 3, settings: &settings, limit: usize::MAX };
    assert_eq!(enlarged, upscaler().enlarge(&half, &how, None).unwrap());
    let ending = pipeline.ending(&request(2 * side), &by_network).unwrap().unwrap();
    assert_eq!((ending.from, ending.upscaler.unwrap().1), ((side, side), vec![(side / 2, side / 2)]));
    let too_much = with_noise(400);
    let too_much = Method::new("up", Settings { upscale: Some(too_much), ..Settings::default() }, pipeline.sites()).unwrap();
    let message = pipeline.check(&request(2 * side), &too_much).unwrap_err().to_string();
    assert!(message.contains("`upscaler.noise_level` is 400, expected at most 350"), "{message}");
}

/// In windows the network sees no more than one of them, and the image has the same size; one window that holds all is the whole.
#[test]
fn windows_bound_what_the_network_sees() {
    let image = Rgb { width: 20, height: 36, data: (0..20 * 36 * 3).map(|i| (i * 37 % 251) as u8).collect() };
    let enlarged = |tile| {
        let settings = Upscaling { steps: 2, tile, ..settings() };
        let how = Enlarging { prompt: "a cat", negative_prompt: "", seed: 1, settings: &settings, limit: usize::MAX };
        let mut trace = Trace::default();
        let image = upscaler().enlarge(&image, &how, Some(&mut trace)).unwrap();
        (image, trace.tensors["upscale.guided.0"].flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    let tile = |side| Some(Tile { side, overlap: 8 });
    let maps = |side| upscaler().maps((20, 36), &Upscaling { tile: tile(side), ..settings() });
    assert_eq!((maps(64), maps(16)), ((1, (36, 20)), (8, (16, 16))));
    let [(whole, guided), (_, held), (tiled, in_tiles)] = [None, tile(64), tile(16)].map(enlarged);
    assert_eq!(guided, held);
    assert_ne!(guided, in_tiles);
    assert_eq!((tiled.width, tiled.height), (whole.width, whole.height));
}

fn with_noise(noise_level: usize) -> Upscale {
    let upscaler = Some(Upscaling { noise_level, ..settings() });
    Upscale { base: BaseSize::Area, filter: ImageFilter::Bicubic, upscaler }
}
