//! The hot path: convolution, attention, normalisation and resizing; and the generator that noise and splits are drawn from.
//!
//! Every function takes and returns candle tensors and knows nothing else: no network, no method, no
//! checkpoint. Shapes are written `(batch, channels, height, width)` for maps and `(batch, tokens, channels)`
//! for token sequences. On the CPU tensors are `f32`. With the feature `cuda`, tensors on a GPU may also be
//! `f16` or `bf16`, and go to kernels of the same names there; the feature `emulator` runs those on the CPU.
//!
//! Results do not depend on the number of threads, nor an image's on the others of its batch: work is cut into
//! tiles whose sizes follow from the shapes alone, and each output element is summed inside one tile.
//!
//! ```
//! use candle_core::{DType, Device};
//! use scalebench_kernels::{Activation, ConvGeometry, ConvWeight, Precision, Tensor, conv2d};
//!
//! # fn main() -> scalebench_kernels::Result<()> {
//! let ones = |dims: [usize; 4]| Tensor::ones(&dims[..], DType::F32, &Device::Cpu);
//! let weight = ConvWeight::new(&ones([1, 1, 3, 3])?, Precision::F32)?;
//! // Re-dilated by 2, a 3×3 kernel reaches two pixels to each side.
//! let geometry = ConvGeometry { dilation: 2, ..ConvGeometry::padded(2) };
//! let y = conv2d(&ones([1, 1, 5, 5])?, &weight, None, geometry, Activation::Identity)?;
//! assert_eq!(y.dims(), [1, 1, 5, 5]);
//! // All nine taps of the pixel in the middle are inside; four of that in the corner.
//! let rows = y.squeeze(0)?.squeeze(0)?.to_vec2::<f32>()?;
//! assert_eq!((rows[2][2], rows[0][0]), (9.0, 4.0));
//! # Ok(())
//! # }
//! ```

#![allow(
    clippy::needless_range_loop,
    reason = "iterator chains are functions of their own, not compiled along with the wide instructions of their caller"
)]

mod attention;
mod attention_map;
mod conv;
mod device;
mod elementwise;
mod fourier;
#[cfg(gpu)]
mod gpu;
mod inner;
mod linear;
mod mersenne;
mod norm;
mod pool;
mod product;
pub mod raster;
mod resize;
mod share;
mod simd;
mod view;
mod wavelet;
mod weight;
mod winograd;
mod words;

pub use attention::attention;
pub use attention_map::{attention_map, mapped_values};
pub use candle_core::{Result, Tensor};
pub use conv::{Activation, ConvGeometry, conv2d};
pub use device::{DeviceId, on_gpu};
pub use elementwise::{add, geglu, gelu, join_channels, quick_gelu, silu};
pub use fourier::{low_pass, scale_low_frequencies};
#[cfg(feature = "emulator")]
pub use gpu::emulated;
pub use inner::inner_products;
pub use linear::{linear, linear_geglu, map_to_tokens, tokens_to_map};
pub use mersenne::MersenneTwister;
pub use norm::{channel_affine, channel_sums, group_norm, layer_norm};
pub use pool::{Pool, pool3x3};
pub use product::Precision;
pub use resize::{
    area_mean, average_pool, blur_gaussian, blur_gaussian_mirrored, enlarge_bicubic, resize_bicubic, resize_bilinear, upsample_nearest,
};
pub use share::{beside, in_pool};
pub use wavelet::wavelet_coarse;
pub use weight::{ConvWeight, LinearWeight};
