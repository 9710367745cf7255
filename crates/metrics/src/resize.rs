//! The resamplers of the reference tools, [`raster`], on decoded images, and their goldens.
//!
//! ```
//! use scalebench_metrics::Image;
//! use scalebench_metrics::resize::{Filter, Raster, pillow_f32, pillow_f32_image};
//! let image = Image::new(2, 1, vec![0, 0, 0, 10, 20, 30])?;
//! let mean = pillow_f32_image(&image, 1, 1, Filter::Box)?;
//! assert_eq!(mean.pixels, [[5.0, 10.0, 15.0]]);
//! assert_eq!(pillow_f32(&Raster::<u8, 3>::from(&image), 1, 1, Filter::Box)?, mean);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{Image, Result};

use scalebench_kernels::raster;
pub use scalebench_kernels::raster::{Filter, Raster, pillow_f32, pillow_u8, tf1_bilinear, torch_antialias, torch_bilinear};

impl From<&Image> for Raster<u8, 3> {
    fn from(image: &Image) -> Self {
        let pixels = image.rgb.as_chunks::<3>().0.to_vec();
        Self { width: image.width, height: image.height, pixels }
    }
}

/// [`pillow_f32`] of a decoded image, without a copy of its pixels in between.
///
/// Example: [this module](self).
pub fn pillow_f32_image(image: &Image, width: usize, height: usize, filter: Filter) -> Result<Raster<f32, 3>> {
    let (pixels, _) = image.rgb.as_chunks::<3>();
    Ok(raster::pillow_f32_of(pixels, (image.width, image.height), width, height, filter)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{formula_image, golden, json, max_difference, tensors};

    fn rows(value: &serde_json::Value) -> Vec<f32> {
        serde_json::from_value::<Vec<Vec<f32>>>(value.clone()).unwrap().concat()
    }

    /// All filters and both pixel types on the 13 × 11 grey image of `golden.json`.
    #[test]
    fn small_reference() {
        let golden = golden();
        let pixel = |i: usize| [((3 * (i % 13).pow(2) + 7 * (i / 13) + 5 * (i % 13) * (i / 13)) % 256) as u8];
        let grey = Raster::new(13, 11, (0..143).map(pixel).collect()).unwrap();
        let float = grey.map(f32::from);
        for (filter, name) in
            [(Filter::Box, "box"), (Filter::Bilinear, "bilinear"), (Filter::Bicubic, "bicubic"), (Filter::Lanczos, "lanczos")]
        {
            let ours = pillow_f32(&float, 4, 5, filter).unwrap().pixels.concat();
            let difference = max_difference(&ours, &rows(&golden[format!("pil_{name}_F")]));
            eprintln!("pillow F {name}: {difference:e}");
            assert!(difference <= if filter == Filter::Lanczos { 2e-5 } else { 0.0 }, "{name}");
            let ours = pillow_u8(&grey, 4, 5, filter).unwrap().map(f32::from).pixels.concat();
            assert_eq!(ours, rows(&golden[format!("pil_{name}_u8")]), "{name}");
        }
        let torch = torch_bilinear(&float, 4, 5).unwrap().pixels.concat();
        assert!(max_difference(&torch, &rows(&golden["torch_bilinear"])) < 3e-5);
        for (filter, key) in [(Filter::Bilinear, "torch_bilinear_aa"), (Filter::Bicubic, "torch_bicubic_aa")] {
            let ours = torch_antialias(&grey, 4, 5, filter).unwrap().pixels.concat();
            let difference = max_difference(&ours, &rows(&golden[key]));
            eprintln!("{key}: {difference:e}");
            assert!(difference < 5e-5, "{key}");
        }
        let tf1 = tf1_bilinear(&float, 4, 5).unwrap().pixels.concat();
        assert_eq!(tf1, rows(&golden["tf1_bilinear"]));
        let up: f64 = tf1_bilinear(&float, 19, 17).unwrap().pixels.iter().map(|p| f64::from(p[0])).sum();
        assert!((up - golden["tf1_bilinear_up_17x19"].as_f64().unwrap()).abs() < 1e-2, "{up}");
    }

    /// Colour images up and down, as the tools see them; large outputs are stored sampled.
    #[test]
    fn colour_references() {
        let references = tensors("resize.safetensors");
        let cases = json("resize.json");
        let mut worst = [0f32; 3];
        for (case, description) in cases["cases"].as_object().unwrap() {
            if !references.contains_key(&format!("{case}.clean")) {
                continue;
            }
            let number = |key: &str| description[key].as_u64().unwrap() as usize;
            let (width, height) = (number("out_w"), number("out_h"));
            let image = formula_image(number("image_seed") as u64, number("h"), number("w"));
            let sum: usize = image.rgb.iter().map(|v| usize::from(*v)).sum();
            assert_eq!(sum, number("image_sum"));
            let float = Raster::from(&image).map(f32::from);
            let sampled = |n: usize| -> Vec<usize> {
                let edge = |i: usize| i < 3 || i + 3 >= n || i.is_multiple_of(13);
                (0..n).filter(|i| !description["subsampled"].as_bool().unwrap() || edge(*i)).collect()
            };
            let clean = pillow_f32(&float, width, height, Filter::Bicubic).unwrap();
            let outputs = [
                ("clean", clean.map(|v| v.clamp(0.0, 255.0))),
                ("tf1", tf1_bilinear(&float, width, height).unwrap()),
                ("pt", torch_bilinear(&float, width, height).unwrap()),
            ];
            for ((name, output), worst) in outputs.iter().zip(&mut worst) {
                let (xs, ys) = (sampled(width), sampled(height));
                let pixels = ys.iter().flat_map(|y| xs.iter().map(move |x| y * width + x));
                let ours: Vec<f32> = pixels.flat_map(|i| output.pixels[i]).collect();
                let difference = max_difference(&ours, &references[&format!("{case}.{name}")].1);
                *worst = worst.max(difference);
            }
        }
        eprintln!("clean, tf1, torch: {worst:?}");
        assert_eq!(worst[0], 0.0, "clean");
        assert!(worst[1] < 1e-4, "tf1 {}", worst[1]);
        assert!(worst[2] < 2e-4, "torch {}", worst[2]);
    }
}
