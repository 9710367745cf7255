//! Images per second of a weights file, on the threads rayon is given (`RAYON_NUM_THREADS`).
//!
//! `cargo run --release --example extract_speed -- weights.safetensors 256 200`: side, images.

use std::error::Error;

use scalebench_metrics::{Extractor, Image, Preprocess, Sample};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, side, count] = arguments.as_slice() else {
        return Err("usage: extract_speed WEIGHTS SIDE IMAGES".into());
    };
    let extractor = Extractor::load(weights.as_ref())?;
    let (side, count): (usize, u32) = (side.parse()?, count.parse()?);
    let image = |group: u32| {
        let rgb = (0..3 * side * side).map(|i| (i as u32).wrapping_mul(2654435761 + group) as u8);
        Image::new(side, side, rgb.collect())
    };
    let samples: Vec<Sample> =
        (0..count).map(|i| Ok(Sample::image(i.to_string(), i, image(i)?))).collect::<Result<_, scalebench_metrics::Error>>()?;
    let start = std::time::Instant::now();
    extractor.features(samples, &Preprocess::default(), |_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{count} images of {side}x{side} on {} threads: {seconds:.2} s, {:.1} images/s",
        std::env::var("RAYON_NUM_THREADS").unwrap_or_else(|_| "all".into()),
        f64::from(count) / seconds
    );
    Ok(())
}
