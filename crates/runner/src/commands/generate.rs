//! `scalebench generate`

use std::path::Path;

use anyhow::{Context, Result, ensure};
use scalebench_generation::{Injected, LoadOptions, Pipeline, Request, Rgb, ScheduleOptions, Seeding, Tensor, Trace, locate};
use scalebench_metrics::Image;

use crate::cli::Generate;
use crate::experiment::methods;
use crate::experiment::resolve::check_family;
use crate::experiment::upscalers::Upscalers;
use crate::host::{device, memory};
use crate::run::images::warn_of_overflow;
use crate::run::store::write_file;
use crate::run::{png, video};

pub(super) fn run(args: Generate) -> Result<()> {
    let method = methods::find(&args.method, Path::new("")).context("--method")?;
    if args.frames > 1 {
        video::check_folder(&args.out).context("--out")?;
    }
    if let Some(folder) = &args.motion_adapter {
        ensure!(folder.is_dir(), "--motion-adapter: {}: no such folder, expected a motion adapter's", folder.display());
    }
    let injected = Injected {
        init_latents: args.init_latents.as_deref().map(|file| tensor(file, "init_latents")).transpose()?,
        step_noise: args.step_noise.as_deref().map(|file| tensor(file, "noise")).transpose()?,
        draws: Vec::new(),
    };
    device::open(args.on.device)?;
    let motion_adapter = args.motion_adapter.clone();
    let options = LoadOptions { variant: args.variant.clone(), motion_adapter, dtype: args.dtype, device: device::current() };
    let mut pipeline = locate(&args.checkpoint).and_then(|folder| Pipeline::load_with(&folder, &options)).context("--checkpoint")?;
    let folder = || args.checkpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
    args.family.as_deref().map(check_family).transpose().context("--family")?;
    let family = args.family.clone().or_else(|| pipeline.family().map(|f| f.name.to_owned())).unwrap_or_else(folder);
    let request = Request {
        prompt: args.prompt,
        negative_prompt: args.negative_prompt,
        width: args.size.width,
        height: args.size.height,
        steps: args.steps,
        sampler: args.sampler,
        schedule: ScheduleOptions {
            timestep_spacing: args.timestep_spacing,
            use_karras_sigmas: args.use_karras_sigmas.then_some(true),
            rescale_betas_zero_snr: args.rescale_betas_zero_snr.then_some(true),
        },
        guidance_scale: args.guidance_scale,
        guidance_rescale: args.guidance_rescale,
        eta: args.eta.unwrap_or(args.sampler.usual_eta()),
        seed: args.seed,
        size_conditioning: args.size_conditioning,
        vae_decode: args.vae_decode,
        seeding: Seeding::PerImage,
        frames: args.frames,
    };
    let (width, height) = pipeline.native_size();
    let pixels = |width: u32, height: u32| f64::from(width) * f64::from(height);
    let scale = pixels(args.size.width, args.size.height) / pixels(width, height);
    let method = method.resolve(&family, scale, pipeline.sites()).context("--method")?;
    if let Some((name, upscaler)) = Upscalers::default().find(&method, args.dtype, Path::new("")).context("--method")? {
        pipeline.lend_upscaler(&name, upscaler);
    }
    pipeline.check(&request, &method)?;
    warn_of_overflow(&pipeline, &request.prompt)?;
    pipeline.embed_ahead([&request])?;
    let mut trace = if args.trace.is_some() { Trace::default() } else { Trace::of_times() };
    let frames = pipeline.generate_frames(&request, &method, &injected, Some(&mut trace))?;
    eprintln!("{}", times(&trace));
    let image = |frame: Rgb| Ok(Image::new(frame.width as usize, frame.height as usize, frame.data)?);
    let frames = frames.into_iter().map(image).collect::<Result<Vec<_>>>()?;
    if let Some(file) = &args.trace {
        write_file(file, &trace.safetensors()?)?;
    }
    match &frames[..] {
        [image] => write_file(&args.out, &png::encode(image, None)?),
        frames => {
            video::write_folder(&args.out, frames)?;
            let mut name = args.out.file_name().unwrap_or_default().to_owned();
            name.push(".webp");
            write_file(&args.out.with_file_name(name), &video::animated_webp(frames, args.fps.0)?)
        }
    }
}

/// Where the time went, on one line.
fn times(trace: &Trace) -> String {
    let of = |name: &str| trace.seconds.iter().filter(|(n, _)| n.starts_with(name)).map(|(_, s)| *s).collect::<Vec<_>>();
    // Of every stage.
    let steps: Vec<f64> = trace.seconds.iter().filter(|(name, _)| name.contains("step ")).map(|(_, s)| *s).collect();
    let (text, enlarge) = (of("text"), of("enlarge"));
    let decode = [of("decode"), of("upscale decode")].concat();
    let enlarged = if enlarge.is_empty() { String::new() } else { format!("enlarge {:.2} s, ", enlarge.iter().sum::<f64>()) };
    let (sum, n) = (steps.iter().sum::<f64>(), steps.len());
    let peak = memory::peak().map(|bytes| format!("; peak memory {:.2} GB", bytes as f64 / 1e9)).unwrap_or_default();
    let mean = sum / n.max(1) as f64;
    format!(
        "text {:.2} s, {n} steps {sum:.2} s ({mean:.2} s each), {enlarged}decode {:.2} s{peak}",
        text.iter().sum::<f64>(),
        decode.iter().sum::<f64>()
    )
}

/// One tensor of a safetensors file.
fn tensor(file: &Path, name: &str) -> Result<Tensor> {
    let read = || candle_core::safetensors::load(file, &candle_core::Device::Cpu);
    let mut tensors = read().with_context(|| format!("cannot read {}", file.display()))?;
    tensors.remove(name).with_context(|| format!("{}: expected a tensor `{name}`", file.display()))
}
