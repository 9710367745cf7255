//! The hot path: convolution, attention, normalisation and resizing on the CPU.
//!
//! Every function takes and returns contiguous `f32` candle tensors and knows nothing else: no
//! network, no method, no checkpoint. Shapes are written `(batch, channels, height, width)` for maps
//! and `(batch, tokens, channels)` for token sequences.
//!
//! Results do not depend on the number of threads: work is cut into tiles whose sizes follow from the
//! shapes alone, and each output element is summed inside one tile.

#![allow(
    clippy::needless_range_loop,
    reason = "iterator chains are functions of their own, not compiled along with the wide instructions of their caller"
)]

mod attention;
mod conv;
mod elementwise;
mod fourier;
mod inner;
mod linear;
mod norm;
mod pool;
mod product;
mod resize;
mod simd;
mod view;
mod weight;
mod winograd;
mod words;

pub use attention::attention;
pub use candle_core::{Result, Tensor};
pub use conv::{Activation, ConvGeometry, conv2d};
pub use elementwise::{geglu, gelu, quick_gelu, silu};
pub use fourier::scale_low_frequencies;
pub use inner::inner_products;
pub use linear::{linear, map_to_tokens, tokens_to_map};
pub use norm::{channel_affine, channel_sums, group_norm, layer_norm};
pub use pool::{Pool, pool3x3};
pub use product::Precision;
pub use resize::{enlarge_bicubic, resize_bilinear, upsample_nearest};
pub use weight::{ConvWeight, LinearWeight};
