//! `scalebench bench`

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use scalebench_generation::{DeviceId, Dtype, UNetBench, VaeBench};
use scalebench_metrics::Inception;
use serde_json::{Value, json};

use crate::cli::{Bench, BenchInception, BenchUnet, BenchVae, BenchWhat, Size, Timed};
use crate::experiment::methods;
use crate::host::{device, memory};

/// Largest side of latents.
const LARGEST: u32 = 4096;

/// Most samples at a time.
const MOST_IN_BATCH: usize = 4096;

/// Steps of the run that the timed step is the first of.
const RUN: usize = 50;

pub(super) fn run(args: &Bench) -> Result<()> {
    let timed = match &args.what {
        BenchWhat::Unet(args) => &args.timed,
        BenchWhat::Vae(args) => &args.timed,
        BenchWhat::Inception(args) => &args.timed,
    };
    let (size, batch) = match &args.what {
        BenchWhat::Unet(args) => (Some(args.size), args.batch),
        BenchWhat::Vae(args) => (Some(args.size), args.batch),
        BenchWhat::Inception(args) => (None, args.batch),
    };
    ensure!((1..=MOST_IN_BATCH).contains(&batch), "--batch: expected 1 to {MOST_IN_BATCH}, found {batch}");
    if let Some(Size { width, height }) = size {
        ensure!(width.max(height) <= LARGEST, "--size: expected sides of at most {LARGEST} latents, found {width}x{height}");
    }
    device::open(timed.on.device)?;
    match &args.what {
        BenchWhat::Unet(args) => unet(args),
        BenchWhat::Vae(args) => vae(args),
        BenchWhat::Inception(args) => inception(args),
    }
}

fn unet(args: &BenchUnet) -> Result<()> {
    ensure!(args.batch >= 2 && args.batch.is_multiple_of(2), "--batch: expected two samples for each image, found {}", args.batch);
    ensure!(
        args.dtype != Dtype::F16 || device::id() != DeviceId::Cpu,
        "--dtype: expected f32 or bf16, found f16, which a CPU multiplies as f32"
    );
    let method = args.method.as_deref().map(|name| methods::find(name, Path::new(""))).transpose().context("--method")?;
    let mut bench = UNetBench::open(&args.config, args.dtype, &device::current()).context("--config")?;
    let (width, height) = (args.size.width as usize, args.size.height as usize);
    let step = bench.step(args.batch / 2, (height, width), RUN, method.as_ref())?;
    let samples = bench.samples_per_image(&step);
    time(&args.timed, json!({ "samples_per_image": samples, "dtype": args.dtype }), || Ok(bench.run(&step).map(drop)?))
}

fn vae(args: &BenchVae) -> Result<()> {
    let mut bench = VaeBench::open(&args.config, &device::current()).context("--config")?;
    let latents = bench.latents(args.batch, (args.size.height as usize, args.size.width as usize))?;
    time(&args.timed, json!({ "images": args.batch, "dtype": Dtype::F32 }), || Ok(bench.decode(&latents).map(drop)?))
}

fn inception(args: &BenchInception) -> Result<()> {
    let network = Inception::load_on(&args.weights, &device::current()).context("--weights")?;
    let side = Inception::SIDE;
    let images = Tensor::rand(-1f32, 1f32, (args.batch, 3, side, side), &Device::Cpu)?;
    time(&args.timed, json!({ "images": args.batch, "dtype": Dtype::F32 }), || Ok(network.forward(&images).map(drop)?))
}

/// Runs `f` once to warm up, then times it, and prints what was found beside `about`.
fn time(timed: &Timed, about: Value, mut f: impl FnMut() -> Result<()>) -> Result<()> {
    ensure!(timed.steps >= 1, "--steps: expected at least 1");
    f()?;
    memory::reset_peak();
    let mut seconds = Vec::new();
    for _ in 0..timed.steps {
        let start = Instant::now();
        f()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    let peak = memory::peak();
    if timed.json {
        let mut found = about;
        found["seconds"] = json!(median);
        found["all_seconds"] = json!(seconds);
        found["peak_memory_bytes"] = json!(peak);
        println!("{found}");
    } else {
        let peak = peak.map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        println!("{median:.3} s (median of {}), peak memory {peak}, {about}", seconds.len());
    }
    Ok(())
}
