//! `scalebench reconstruct`

use anyhow::{Context, Result, ensure};
use scalebench_generation::{Pipeline, Rgb};
use scalebench_metrics::{Image, list_images};

use crate::cli::Reconstruct;
use crate::run::png;
use crate::run::store::write_file;

pub(super) fn run(args: &Reconstruct) -> Result<()> {
    let pipeline = Pipeline::load(&args.checkpoint).context("--checkpoint")?;
    let files = list_images(&args.images).context("--images")?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let factor = pipeline.vae_factor() as usize;
    for (i, file) in files.iter().enumerate() {
        let image = Image::open(file)?;
        let fits = image.width.is_multiple_of(factor) && image.height.is_multiple_of(factor);
        ensure!(
            fits,
            "{}: {}x{} pixels, expected multiples of the autoencoder's factor {factor}",
            file.display(),
            image.width,
            image.height
        );
        let rgb = Rgb { width: image.width as u32, height: image.height as u32, data: image.rgb };
        let rgb = pipeline.reconstruct(&rgb)?;
        let image = Image::new(rgb.width as usize, rgb.height as usize, rgb.data)?;
        write_file(&args.out.join(format!("{i:06}.png")), &png::encode(&image, None)?)?;
    }
    Ok(())
}
