//! `scalebench bench`

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use scalebench_generation::{Dtype, UNetBench};

use crate::cli::{Bench, BenchUnet, BenchWhat};
use crate::{memory, methods};

/// Steps of the run that the timed step is the first of.
const RUN: usize = 50;

pub(super) fn run(args: &Bench) -> Result<()> {
    match &args.what {
        BenchWhat::Unet(args) => unet(args),
    }
}

fn unet(args: &BenchUnet) -> Result<()> {
    ensure!(args.batch >= 2 && args.batch.is_multiple_of(2), "--batch: expected two samples for each image, found {}", args.batch);
    ensure!(args.steps >= 1, "--steps: expected at least 1");
    ensure!(args.dtype != Dtype::F16, "--dtype: expected f32 or bf16, found f16, which a CPU multiplies as f32");
    let method = args.method.as_deref().map(|name| methods::find(name, Path::new(""))).transpose().context("--method")?;
    let mut bench = UNetBench::open(&args.config, args.dtype).context("--config")?;
    let (width, height) = (args.size.width as usize, args.size.height as usize);
    let step = bench.step(args.batch / 2, (height, width), RUN, method.as_ref())?;
    bench.run(&step)?;
    memory::reset_peak();
    let mut seconds = Vec::new();
    for _ in 0..args.steps {
        let start = Instant::now();
        bench.run(&step)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    let (memory, samples) = (memory::peak(), bench.samples_per_image(&step));
    if args.json {
        let found = serde_json::json!({
            "seconds": median, "all_seconds": seconds, "peak_memory_bytes": memory, "samples_per_image": samples, "dtype": args.dtype,
        });
        println!("{found}");
    } else {
        let memory = memory.map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        println!("{median:.3} s (median of {}), {samples} samples an image, peak memory {memory}", seconds.len());
    }
    Ok(())
}
