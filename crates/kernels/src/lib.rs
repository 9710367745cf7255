//! The hot path: convolution, attention, normalisation and resizing on the CPU.
//!
//! Every function takes and returns contiguous `f32` candle tensors and knows nothing else: no
//! network, no method, no checkpoint. Shapes are written `(batch, channels, height, width)` for maps
//! and `(batch, tokens, channels)` for token sequences.
//!
//! Results do not depend on the number of threads: work is cut into tiles whose sizes follow from the
//! shapes alone, and each output element is summed inside one tile.

mod attention;
mod conv;
mod elementwise;
mod fourier;
mod norm;
mod pool;
mod resize;
mod simd;
mod tokens;
mod view;

pub use attention::attention;
pub use candle_core::{Result, Tensor};
pub use conv::{Activation, ConvGeometry, conv2d};
pub use elementwise::{geglu, gelu, linear, quick_gelu, silu};
pub use fourier::scale_low_frequencies;
pub use norm::{channel_affine, channel_sums, group_norm, layer_norm};
pub use pool::{Pool, pool3x3};
pub use resize::{enlarge_bicubic, resize_bilinear, upsample_nearest};
pub use tokens::{map_to_tokens, tokens_to_map};
