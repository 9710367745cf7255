//! Seconds per image of a CLIP or DINOv2 folder, on the threads rayon is given (`RAYON_NUM_THREADS`).
//!
//! `cargo run --release --example network_speed -- FOLDER 5`: folder, repetitions.

use std::error::Error;
use std::time::Instant;

use candle_core::{Device, Tensor};
use scalebench_metrics::{Clip, Dinov2};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, repetitions] = arguments.as_slice() else {
        return Err("usage: network_speed FOLDER REPETITIONS".into());
    };
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(std::path::Path::new(folder).join("config.json"))?)?;
    type Forward = Box<dyn Fn(&Tensor) -> scalebench_metrics::Result<Tensor>>;
    let (name, side, forward): (_, _, Forward) = if config["model_type"] == "clip" {
        let network = Clip::load(folder.as_ref())?;
        (network.name(), network.side(), Box::new(move |x| network.image_features(x)))
    } else {
        let network = Dinov2::load(folder.as_ref())?;
        (network.name(), network.side(), Box::new(move |x| network.features(x)))
    };
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let image = Tensor::from_vec(pixels, (1, 3, side, side), &Device::Cpu)?;
    forward(&image)?;
    for _ in 0..repetitions.parse()? {
        let start = Instant::now();
        forward(&image)?;
        eprintln!("{name}: {:.3} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
