//! From a decoded image to the network's input: the step that makes FIDs differ between tools.
//!
//! A [`Preprocess`] is plain data. Its [`id`](Preprocess::id) is written into every feature file, and
//! metrics refuse to compare files whose [`Profile`] differs. Which part of the image is looked at
//! (crops, a resize beforehand) may differ between the sides, since protocols ask for that.
//!
//! | profile | to 299 × 299 | scaling | as in |
//! | --- | --- | --- | --- |
//! | `clean` | Pillow bicubic on floats, clipped to \[0, 255\] | (x − 128) / 128 | clean-fid 0.1.35 |
//! | `pytorch-fid` | bilinear, no antialiasing | 2x/255 − 1 | pytorch-fid 0.3.0 |
//! | `torch-fidelity` | TF1 bilinear, no antialiasing | (x − 128) / 128 | torch-fidelity 0.4.0 |
//!
//! Every profile squashes: a 2:1 image becomes a square, as in all the tools.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::random::keyed_interval;
use crate::resize::{Filter, Raster, pillow_f32, pillow_u8, tf1_bilinear, torch_bilinear};
use crate::{Error, Image, Result};

/// Side of the network's input in pixels.
pub const INPUT_SIDE: usize = 299;

/// How an image becomes a 299 × 299 input; see the [module](self) for the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Antialiased; the only profile that is safe above 512 pixels, hence the default.
    #[default]
    Clean,
    /// Aliases at high resolution; for comparison with published numbers.
    PytorchFid,
    /// Aliases at high resolution; for comparison with published numbers.
    TorchFidelity,
}

impl Profile {
    /// The name used in configurations and feature files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::PytorchFid => "pytorch-fid",
            Self::TorchFidelity => "torch-fidelity",
        }
    }

    /// Network input of an image: `(3, 299, 299)` planes in one vector, in [−1, 1].
    pub fn apply(self, image: &Image) -> Result<Vec<f32>> {
        let raster = Raster::from(image).map(f32::from);
        let (side, middle): (_, fn(f32) -> f32) = (INPUT_SIDE, |v| (v - 128.0) / 128.0);
        let scaled = match self {
            Self::Clean => pillow_f32(&raster, side, side, Filter::Bicubic)?.map(|v| middle(v.clamp(0.0, 255.0))),
            Self::PytorchFid => torch_bilinear(&raster.map(|v| v / 255.0), side, side)?.map(|v| 2.0 * v - 1.0),
            Self::TorchFidelity => tf1_bilinear(&raster, side, side)?.map(middle),
        };
        Ok((0..3).flat_map(|c| scaled.pixels.iter().map(move |p| p[c])).collect())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Random square crops, taken before the profile's resize.
///
/// A crop's position is a function of the seed, the image's index and the crop's number only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crops {
    /// Crops per image.
    pub count: u32,
    /// Side of a crop in pixels, usually the model's base resolution.
    pub size: u32,
    /// Seed of the positions.
    pub seed: u64,
}

impl Crops {
    /// Top left corners `(left, top)` of the crops of image `index`.
    pub fn positions(&self, index: u64, width: usize, height: usize) -> Vec<(usize, usize)> {
        let room = |side: usize| side.saturating_sub(self.size as usize);
        (0..u64::from(self.count))
            .map(|k| {
                let draw = |axis, max| keyed_interval(&[self.seed, index, k, axis], max);
                (draw(0, room(width)), draw(1, room(height)))
            })
            .collect()
    }
}

/// Everything that happens between a decoded image and the network.
///
/// In this order: resize to `pre_resize`, cut crops, apply the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// The resize to 299 × 299 and the scaling.
    #[serde(default)]
    pub profile: Profile,
    /// Resize to a square of this side first (Pillow bicubic, 8 bits), as a user's own
    /// down-sampling to the base resolution would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_resize: Option<u32>,
    /// Look at random crops instead of the whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crops: Option<Crops>,
}

impl Preprocess {
    /// Whole images through a profile.
    pub fn whole(profile: Profile) -> Self {
        Self { profile, pre_resize: None, crops: None }
    }

    /// Checks that no size and no count is zero.
    pub fn validate(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::BadPreprocess(what.to_owned()));
        match (self.pre_resize, self.crops) {
            (Some(0), _) => bad("pre_resize is 0"),
            (_, Some(Crops { count: 0, .. })) => bad("crops.count is 0"),
            (_, Some(Crops { size: 0, .. })) => bad("crops.size is 0"),
            (Some(side), Some(crops)) if crops.size > side => bad(&format!("crops of {} do not fit into pre_resize {side}", crops.size)),
            _ => Ok(()),
        }
    }

    /// The canonical name, such as `clean`, `clean/pre512` or `clean/pre1024/crops10x512@7`.
    pub fn id(&self) -> String {
        let mut id = self.profile.name().to_owned();
        if let Some(side) = self.pre_resize {
            id += &format!("/pre{side}");
        }
        if let Some(Crops { count, size, seed }) = self.crops {
            id += &format!("/crops{count}x{size}@{seed}");
        }
        id
    }

    /// Network inputs of one image, each `(3, 299, 299)` in [−1, 1]; one per crop, or just one.
    ///
    /// `index` is the image's place in its set; it keys the crop positions. `name` is for errors.
    pub fn inputs(&self, image: &Image, index: u64, name: &str) -> Result<Vec<Vec<f32>>> {
        let resized = match self.pre_resize {
            Some(side) if (image.width, image.height) != (side as usize, side as usize) => {
                let side = side as usize;
                let raster = pillow_u8(&Raster::from(image), side, side, Filter::Bicubic)?;
                Some(Image::new(side, side, raster.pixels.into_flattened())?)
            }
            _ => None,
        };
        let image = resized.as_ref().unwrap_or(image);
        let Some(crops) = self.crops else {
            return Ok(vec![self.profile.apply(image)?]);
        };
        let size = crops.size as usize;
        if image.width.min(image.height) < size {
            let (width, height, name) = (image.width, image.height, name.to_owned());
            return Err(Error::CropTooLarge { name, width, height, size });
        }
        crops
            .positions(index, image.width, image.height)
            .into_iter()
            .map(|(left, top)| self.profile.apply(&image.crop(left, top, size)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Image {
        let rgb = (0..3 * width * height).map(|i| (i % 251) as u8).collect();
        Image::new(width, height, rgb).unwrap()
    }

    #[test]
    fn ids_and_json_name_the_same_thing() {
        let json = r#"{"profile":"clean","pre_resize":96,"crops":{"count":3,"size":64,"seed":7}}"#;
        let full: Preprocess = serde_json::from_str(json).unwrap();
        assert_eq!(full.id(), "clean/pre96/crops3x64@7");
        assert_eq!(serde_json::to_string(&full).unwrap(), json);
        assert_eq!(Preprocess::default().id(), "clean");
        assert_eq!(Preprocess::whole(Profile::TorchFidelity).id(), "torch-fidelity");
        assert!(serde_json::from_str::<Preprocess>(r#"{"crop":1}"#).is_err());
    }

    #[test]
    fn crops_are_a_function_of_seed_and_index() {
        let crops = Crops { count: 64, size: 64, seed: 1 };
        let positions = crops.positions(5, 100, 64);
        assert_eq!(positions, crops.positions(5, 100, 64));
        assert_ne!(positions, crops.positions(6, 100, 64));
        assert_ne!(positions, Crops { seed: 2, ..crops }.positions(5, 100, 64));
        assert!(positions.iter().all(|&(left, top)| left <= 36 && top == 0));
        let seen: std::collections::HashSet<_> = positions.iter().map(|p| p.0).collect();
        assert!(seen.len() > 20, "{seen:?}");
    }

    #[test]
    fn a_crop_equals_the_cut_out_image() {
        let image = ramp(40, 30);
        let crops = Crops { count: 2, size: 20, seed: 3 };
        let preprocess = Preprocess { crops: Some(crops), ..Preprocess::default() };
        let inputs = preprocess.inputs(&image, 9, "x").unwrap();
        let (left, top) = crops.positions(9, 40, 30)[1];
        assert_eq!(inputs[1], Profile::Clean.apply(&image.crop(left, top, 20)).unwrap());
        let small = preprocess.inputs(&ramp(19, 30), 0, "small.png").unwrap_err();
        assert!(small.to_string().contains("small.png is 19x30"));
    }

    #[test]
    fn inputs_are_planes_in_range() {
        let image = Image::new(1, 1, vec![0, 128, 255]).unwrap();
        let plane = INPUT_SIDE * INPUT_SIDE;
        for (profile, expected) in [
            (Profile::Clean, [-1.0, 0.0, 127.0 / 128.0]),
            (Profile::TorchFidelity, [-1.0, 0.0, 127.0 / 128.0]),
            (Profile::PytorchFid, [-1.0, 1.0 / 255.0, 1.0]),
        ] {
            let input = profile.apply(&image).unwrap();
            assert_eq!(input.len(), 3 * plane);
            for (plane, expected) in input.chunks(plane).zip(expected) {
                assert!(plane.iter().all(|v: &f32| (v - expected).abs() < 1e-6), "{profile}");
            }
        }
    }

    #[test]
    fn zero_sizes_are_refused() {
        let crops = Some(Crops { count: 1, size: 65, seed: 0 });
        let pre = |pre_resize, crops| Preprocess { profile: Profile::Clean, pre_resize, crops };
        assert!(pre(Some(0), None).validate().is_err());
        assert!(pre(Some(64), crops).validate().is_err());
        assert!(pre(Some(65), crops).validate().is_ok());
    }
}
