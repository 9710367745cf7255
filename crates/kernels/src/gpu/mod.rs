//! The same functions on a GPU: what each launches, and with which arguments.
//!
//! A map is held pixel by pixel: a tensor `(batch, channels, height, width)` whose strides are those of
//! `(batch, height, width, channels)`. So the layout is this module's affair: maps of any strides are taken, and those
//! made here need no copy. Activations have the type of the weights that they meet, f32, f16 or bf16; sums, biases and
//! what scales a norm are f32.

#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "emulator")]
mod emulator;
mod launch;

#[cfg(feature = "emulator")]
pub use emulator::emulated;
#[cfg(feature = "emulator")]
pub(crate) use emulator::{active as emulating, emulate};

use crate::conv::{Activation, ConvGeometry};
use crate::pool::Pool;
use candle_core::{DType, Device, Result, Tensor, bail};
use launch::{Args, Launch, Module, Output, address};
use std::f64::consts::LOG2_E;

/// Whether a tensor is here to be worked on.
pub(crate) fn takes(x: &Tensor) -> bool {
    crate::on_gpu(x.device())
}

/// What is known of GPUs.
#[cfg(feature = "cuda")]
pub(crate) mod device {
    use super::driver;
    use candle_core::{Device, Result};

    /// Opens GPU `ordinal`. Work that is given to the device is done in order, whichever thread gives it.
    pub(crate) fn open(ordinal: usize) -> Result<Device> {
        driver::open(ordinal)
    }

    /// Number of GPUs.
    pub(crate) fn count() -> Result<usize> {
        driver::count()
    }

    /// What the driver calls GPU `ordinal`.
    pub(crate) fn name(ordinal: usize) -> Result<String> {
        driver::name(ordinal)
    }

    /// Most bytes that tensors on GPU `ordinal` took since [`reset_peak`].
    pub(crate) fn peak(ordinal: usize) -> Result<u64> {
        driver::peak(ordinal)
    }

    /// Starts [`peak`] anew.
    pub(crate) fn reset_peak(ordinal: usize) -> Result<()> {
        driver::reset_peak(ordinal)
    }
}

/// Channels of what a product reads come in so many at a time: 16 bytes of the smallest type.
const CHUNK: usize = 8;
/// Threads of kernels that pass over a map once.
const THREADS: usize = 256;

macro_rules! args {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        struct $name { $($field: $type),* }
        // SAFETY: plain numbers, in the order of the kernel's own struct.
        #[cfg(feature = "cuda")]
        unsafe impl candle_core::cuda_backend::cudarc::driver::DeviceRepr for $name {}
        // SAFETY: as above.
        unsafe impl Args for $name {}
    )*};
}

args! {
    struct GemmArgs {
        x: u64, weight: u64, bias: u64, residual: u64, y: u64,
        y_stride: i64,
        batch: i32, height: i32, width: i32, channels: i32,
        out_height: i32, out_width: i32, outputs: i32,
        kernel_height: i32, kernel_width: i32, stride: i32, pad_rows: i32, pad_columns: i32, dilation: i32,
        bias_per_image: i32, relu: i32,
    }
    struct AttentionArgs { q: u64, k: u64, v: u64, y: u64, queries: i32, keys: i32, heads: i32, size: i32, scale: f32 }
    struct PartialsArgs { x: u64, partials: u64, pixels: i64, part_pixels: i64, parts: i32, channels: i32 }
    struct FactorsArgs {
        partials: u64, weight: u64, bias: u64, factors: u64,
        pixels: i64,
        parts: i32, channels: i32, groups: i32, eps: f32,
    }
    struct AffineArgs {
        x: u64, factors: u64, y: u64,
        pixels: i64, part_pixels: i64,
        parts: i32, channels: i32, per_image: i32, with_silu: i32,
    }
    struct LayerNormArgs { x: u64, weight: u64, bias: u64, y: u64, rows: i64, channels: i32, eps: f32 }
    struct RepackArgs { x: u64, strides: [i64; 4], y: u64, count: i64, channels: i32, height: i32, width: i32, padded: i32 }
    struct ResizeArgs { x: u64, y: u64, count: i64, height: i32, width: i32, out_height: i32, out_width: i32, channels: i32 }
    struct PoolArgs {
        x: u64, y: u64, count: i64,
        height: i32, width: i32, out_height: i32, out_width: i32, channels: i32,
        stride: i32, padding: i32, average: i32,
    }
    struct JoinArgs { x: u64, y: u64, count: i64, channels: i32, all: i32, first: i32 }
    struct MapArgs { x: u64, other: u64, y: u64, count: i64, channels: i32 }
    struct SoftmaxArgs { x: u64, y: u64, rows: i32, columns: i32, stride: i32, scale: f32 }
}

fn name_of(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        _ => bail!("expected f32, f16 or bf16 on a GPU, found {dtype:?}"),
    }
}

/// Numbers of a type that 16 bytes hold.
fn wide(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// The suffix of a kernel, and what a thread of it handles: 16 bytes where `n` numbers, and the starts of `tensors`, come in those.
fn width(dtype: DType, n: usize, tensors: &[&Tensor]) -> Result<(&'static str, usize)> {
    let mut aligned = n.is_multiple_of(wide(dtype));
    for tensor in tensors {
        aligned &= address(tensor)?.is_multiple_of(16);
    }
    Ok(if aligned { ("wide", wide(dtype)) } else { ("single", 1) })
}

fn as_i32(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("a GPU kernel counts to 2³¹, asked for {n}")))
}

/// A pass over `count` numbers of `y`, `per_thread` by each thread.
fn pass(kernel: String, count: usize, per_thread: usize) -> Launch {
    Launch { module: Module::Maps, kernel, blocks: count.div_ceil(per_thread * THREADS), threads: THREADS as u32, shared: 0 }
}

/// As f32, side by side: biases and factors.
fn plain(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.contiguous()
}

/// A map as `(batch, height, width, channels)`, side by side, of type `dtype`, its channels padded with zeros to a
/// multiple of `chunk`.
fn pixels(x: &Tensor, dtype: DType, chunk: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let view = x.permute((0, 2, 3, 1))?;
    let ready = x.dtype() == dtype && channels.is_multiple_of(chunk) && view.is_contiguous();
    if ready && address(&view)?.is_multiple_of(16) {
        return Ok(view);
    }
    let strides: [i64; 4] = std::array::from_fn(|i| x.stride()[i] as i64);
    repack(x, strides, (batch, channels, height, width), dtype, chunk)
}

/// Gathers `(batch, height, width, channels)` from strides of batch, channel, row and column.
fn repack(
    x: &Tensor,
    strides: [i64; 4],
    (batch, channels, height, width): (usize, usize, usize, usize),
    dtype: DType,
    chunk: usize,
) -> Result<Tensor> {
    let padded = channels.next_multiple_of(chunk);
    let mut y = Output::new(x.device(), (batch, height, width, padded), dtype)?;
    let count = batch * height * width * padded;
    let args = RepackArgs {
        x: address(x)?,
        strides,
        y: y.address()?,
        count: count as i64,
        channels: as_i32(channels)?,
        height: as_i32(height)?,
        width: as_i32(width)?,
        padded: as_i32(padded)?,
    };
    let kernel = format!("repack_{}_{}", name_of(x.dtype())?, name_of(dtype)?);
    // SAFETY: the strides are those of `x`, and `y` has `count` elements.
    unsafe { pass(kernel, count, 1).run(x.device(), &args)? };
    Ok(y.tensor())
}

/// Back to `(batch, channels, height, width)`.
fn map(pixels: Output) -> Result<Tensor> {
    pixels.tensor().permute((0, 3, 1, 2))
}

/// A tensor side by side, and whether its dimensions had to be turned for it, as those of a map.
fn dense(x: &Tensor) -> Result<(Tensor, bool)> {
    if x.is_contiguous() || x.rank() != 4 {
        return Ok((x.contiguous()?, false));
    }
    Ok((x.permute((0, 2, 3, 1))?.contiguous()?, true))
}

/// Kernels `(outputs, inputs, height, width)` as `(outputs, height, width, padded inputs)`.
pub(crate) fn lay_out_kernels(weight: &Tensor) -> Result<Tensor> {
    pixels(weight, weight.dtype(), CHUNK)
}

/// Kernels as they were laid out, back to `(outputs, inputs, height, width)`, f32.
pub(crate) fn kernels(weight: &Tensor, inputs: usize) -> Result<Tensor> {
    weight.narrow(3, 0, inputs)?.permute((0, 3, 1, 2))?.to_dtype(DType::F32)?.contiguous()
}

/// A product of tiles: `x` `(batch, height, width, channels)` with `weight` `(outputs, kh, kw, channels)`.
struct Gemm<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    bias: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
    geometry: ConvGeometry,
    activation: Activation,
    out: (usize, usize),
}

impl Gemm<'_> {
    /// `(batch, out height, out width, outputs)`.
    fn run(self) -> Result<Output> {
        let (batch, ..) = self.x.dims4()?;
        let outputs = self.weight.dim(0)?;
        let mut y = Output::new(self.x.device(), (batch, self.out.0, self.out.1, outputs), self.weight.dtype())?;
        let to = y.address()?;
        self.run_into(to, outputs)?;
        Ok(y)
    }

    /// Into memory at `y`, pixels `stride` elements apart.
    fn run_into(self, y: u64, stride: usize) -> Result<()> {
        let (batch, height, width, channels) = self.x.dims4()?;
        let (outputs, kernel_height, kernel_width, _) = self.weight.dims4()?;
        let bias = self.bias.map(plain).transpose()?;
        let ConvGeometry { stride: step, padding, dilation } = self.geometry;
        let args = GemmArgs {
            x: address(self.x)?,
            weight: address(self.weight)?,
            bias: bias.as_ref().map_or(Ok(0), address)?,
            residual: self.residual.map_or(Ok(0), address)?,
            y,
            y_stride: stride as i64,
            batch: as_i32(batch)?,
            height: as_i32(height)?,
            width: as_i32(width)?,
            channels: as_i32(channels)?,
            out_height: as_i32(self.out.0)?,
            out_width: as_i32(self.out.1)?,
            outputs: as_i32(outputs)?,
            kernel_height: as_i32(kernel_height)?,
            kernel_width: as_i32(kernel_width)?,
            stride: as_i32(step)?,
            pad_rows: as_i32(padding.0)?,
            pad_columns: as_i32(padding.1)?,
            dilation: as_i32(dilation)?,
            bias_per_image: bias.as_ref().is_some_and(|bias| bias.rank() == 2).into(),
            relu: (self.activation == Activation::Relu).into(),
        };
        let positions = batch * self.out.0 * self.out.1;
        let tiles = |side: usize| positions.div_ceil(side) * outputs.div_ceil(side);
        // Large tiles read less, unless they leave multiprocessors idle or are half empty. Results are the same.
        let large = tiles(128) >= 128 && outputs.next_multiple_of(128) * 4 <= outputs.next_multiple_of(64) * 5;
        let (side, threads) = if large { (128, 256) } else { (64, 128) };
        let launch = Launch {
            module: Module::Gemm,
            kernel: format!("gemm_{}_{side}", name_of(self.weight.dtype())?),
            blocks: tiles(side),
            threads,
            // Three stages of two operands, 64 bytes of each row.
            shared: 3 * 2 * side * 64,
        };
        // SAFETY: the callers give operands of these shapes.
        unsafe { launch.run(self.x.device(), &args) }
    }
}

/// [`conv2d`](crate::conv2d) of checked shapes; `out` is (height, width) of the result.
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
    activation: Activation,
    out: (usize, usize),
) -> Result<Tensor> {
    let x = pixels(x, weight.dtype(), CHUNK)?;
    map(Gemm { x: &x, weight, bias, residual: None, geometry, activation, out }.run()?)
}

/// Rows `(n, k)` as the pixels of one map, of the type of `weight`.
fn rows(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let k = x.dims().last().copied().unwrap_or(0);
    let n = x.elem_count() / k.max(1);
    let x = x.contiguous()?.reshape((1, 1, n, k))?;
    pixels(&x.permute((0, 3, 1, 2))?, weight.dtype(), CHUNK)
}

/// [`linear`](crate::linear) of checked shapes, `weight` `(n, 1, 1, padded k)`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = weight.dim(0)?;
    }
    let x = rows(x, weight)?;
    let out = (1, x.dim(2)?);
    let y = Gemm { x: &x, weight, bias, residual: None, geometry: ConvGeometry::padded(0), activation: Activation::Identity, out }.run()?;
    y.tensor().reshape(dims)
}

/// [`map_to_tokens`](crate::map_to_tokens) of checked shapes.
pub(crate) fn map_to_tokens(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, _, h, w) = x.dims4()?;
    let x = pixels(x, weight.dtype(), CHUNK)?;
    let gemm = Gemm {
        x: &x,
        weight,
        bias: Some(bias),
        residual: None,
        geometry: ConvGeometry::padded(0),
        activation: Activation::Identity,
        out: (h, w),
    };
    gemm.run()?.tensor().reshape((batch, h * w, weight.dim(0)?))
}

/// [`tokens_to_map`](crate::tokens_to_map) of checked shapes.
pub(crate) fn tokens_to_map(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let (batch, _, h, w) = residual.dims4()?;
    let k = x.dims()[2];
    let x = x.contiguous()?.reshape((batch, h, w, k))?.permute((0, 3, 1, 2))?;
    let x = pixels(&x, weight.dtype(), CHUNK)?;
    let residual = pixels(residual, weight.dtype(), 1)?;
    let (geometry, activation) = (ConvGeometry::padded(0), Activation::Identity);
    map(Gemm { x: &x, weight, bias: Some(bias), residual: Some(&residual), geometry, activation, out: (h, w) }.run()?)
}

/// [`attention`](crate::attention) of checked shapes.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let (m, dtype, size) = (k.dim(1)?, q.dtype(), width / heads);
    let (q, k, v) = (q.contiguous()?, k.to_dtype(dtype)?.contiguous()?, v.to_dtype(dtype)?.contiguous()?);
    let kernel = [16, 32, 48, 64, 80, 128, 160].into_iter().find(|&most| size <= most);
    let Some(most) = kernel else { return attention_in_strips(&q, &k, &v, heads, scale) };
    let mut aligned = size.is_multiple_of(wide(dtype));
    for operand in [&q, &k, &v] {
        aligned &= address(operand)?.is_multiple_of(16);
    }
    if !aligned {
        // Heads side by side, each filled up with zeros.
        let filled = |x: &Tensor, rows: usize| {
            let strides = [rows * width, 1, width, size].map(|s| s as i64);
            repack(x, strides, (batch, size, rows, heads), dtype, CHUNK)?.flatten_from(2)
        };
        let y = attention(&filled(&q, n)?, &filled(&k, m)?, &filled(&v, m)?, heads, scale)?;
        return y.reshape((batch, n, heads, ()))?.narrow(3, 0, size)?.reshape((batch, n, width));
    }
    // Of one tile.
    let (queries, keys) = match dtype {
        DType::F32 => (64, 32),
        _ if most <= 80 => (128, 64),
        _ => (64, 64),
    };
    let mut y = Output::new(q.device(), (batch, n, width), dtype)?;
    let args = AttentionArgs {
        q: address(&q)?,
        k: address(&k)?,
        v: address(&v)?,
        y: y.address()?,
        queries: as_i32(n)?,
        keys: as_i32(m)?,
        heads: as_i32(heads)?,
        size: as_i32(size)?,
        scale: (scale * LOG2_E) as f32,
    };
    let launch = Launch {
        module: Module::Attention,
        kernel: format!("attention_{}_{most}", name_of(dtype)?),
        blocks: n.div_ceil(queries) * heads * batch,
        threads: 128,
        shared: (queries + 2 * keys) * (most * dtype.size_in_bytes() + 16),
    };
    // SAFETY: the operands have these shapes.
    unsafe { launch.run(q.device(), &args)? };
    Ok(y.tensor())
}

/// Scores of a strip, in elements: 256 MiB of f32.
const STRIP: usize = 1 << 26;

/// Attention of heads that no kernel has registers for (the autoencoder's one head of 512 channels): as two products, a strip of
/// queries at a time.
fn attention_in_strips(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let (m, dtype, size) = (k.dim(1)?, q.dtype(), width / heads);
    // (batch, heads, rows, size), and for values (batch, heads, size, keys).
    let by_head = |x: &Tensor, rows: usize| {
        let strides = [rows * width, 1, size, width].map(|s| s as i64);
        repack(x, strides, (batch, size, heads, rows), dtype, CHUNK)
    };
    let (q, k) = (by_head(q, n)?, by_head(k, m)?);
    let v = repack(v, [m * width, width, size, 1].map(|s| s as i64), (batch, m, heads, size), dtype, CHUNK)?;
    let stride = v.dim(3)?;
    let mut y = Output::new(q.device(), (batch, n, width), dtype)?;
    let to = y.address()?;
    let strip = (STRIP / stride).clamp(1, n);
    let product = |x: &Tensor, weight: &Tensor, y: u64, stride: usize| {
        let (geometry, activation) = (ConvGeometry::padded(0), Activation::Identity);
        Gemm { x, weight, bias: None, residual: None, geometry, activation, out: (1, x.dim(2)?) }.run_into(y, stride)
    };
    for image in 0..batch {
        for head in 0..heads {
            let one = |x: &Tensor| x.narrow(0, image, 1)?.narrow(1, head, 1);
            let as_weight = |x: &Tensor| one(x)?.squeeze(0)?.squeeze(0)?.unsqueeze(1)?.unsqueeze(1);
            let (keys, values) = (as_weight(&k)?, as_weight(&v)?);
            for first in (0..n).step_by(strip) {
                let queries = one(&q)?.narrow(2, first, strip.min(n - first))?;
                let rows = queries.dim(2)?;
                let mut scores = Output::new(q.device(), (1, 1, rows, stride), dtype)?;
                let at = scores.address()?;
                product(&queries, &keys, at, stride)?;
                let scale = (scale * LOG2_E) as f32;
                let args = SoftmaxArgs { x: at, y: at, rows: as_i32(rows)?, columns: as_i32(m)?, stride: as_i32(stride)?, scale };
                let kernel = format!("softmax_{}", name_of(dtype)?);
                let launch =
                    Launch { module: Module::Maps, kernel, blocks: rows.div_ceil(THREADS / 32), threads: THREADS as u32, shared: 0 };
                // SAFETY: `scores` has `rows` rows of `stride` elements.
                unsafe { launch.run(q.device(), &args)? };
                let offset = ((image * n + first) * width + head * size) * dtype.size_in_bytes();
                product(&scores.tensor(), &values, to + offset as u64, width)?;
            }
        }
    }
    Ok(y.tensor())
}

/// How a map's pixels are cut into parts: (pixels of a part, parts). Follows from the size of one image alone.
fn parts(pixels: usize) -> (usize, usize) {
    let part = pixels.div_ceil(1024).max(128);
    (part, pixels.div_ceil(part))
}

/// Sums and sums of squares of every channel of every part, `(batch, parts, channels, 2)`; `x` is `(batch, h, w, channels)`.
fn partials(x: &Tensor) -> Result<Tensor> {
    let (batch, h, w, channels) = x.dims4()?;
    let (part, parts) = parts(h * w);
    let (suffix, _) = width(x.dtype(), channels, &[x])?;
    let mut partials = Output::new(x.device(), (batch, parts, channels, 2), DType::F32)?;
    let args = PartialsArgs {
        x: address(x)?,
        partials: partials.address()?,
        pixels: (h * w) as i64,
        part_pixels: part as i64,
        parts: as_i32(parts)?,
        channels: as_i32(channels)?,
    };
    let kernel = format!("channel_partials_{}_{suffix}", name_of(x.dtype())?);
    // SAFETY: the shapes are those of the tensors.
    unsafe { Launch { module: Module::Norm, kernel, blocks: batch * parts, threads: 256, shared: 0 }.run(x.device(), &args)? };
    Ok(partials.tensor())
}

/// `x` `(batch, h, w, channels)` times factors plus offsets, `(batch, channels, 2)` or `(channels, 2)`.
fn affine(x: &Tensor, factors: &Tensor, with_silu: bool) -> Result<Tensor> {
    let (batch, h, w, channels) = x.dims4()?;
    let (part, parts) = parts(h * w);
    let (suffix, _) = width(x.dtype(), channels, &[x])?;
    let mut y = Output::new(x.device(), x.shape(), x.dtype())?;
    let args = AffineArgs {
        x: address(x)?,
        factors: address(factors)?,
        y: y.address()?,
        pixels: (h * w) as i64,
        part_pixels: part as i64,
        parts: as_i32(parts)?,
        channels: as_i32(channels)?,
        per_image: (factors.rank() == 3).into(),
        with_silu: with_silu.into(),
    };
    let kernel = format!("channel_affine_{}_{suffix}", name_of(x.dtype())?);
    // SAFETY: the shapes are those of the tensors.
    unsafe { Launch { module: Module::Norm, kernel, blocks: batch * parts, threads: 256, shared: 0 }.run(x.device(), &args)? };
    map(y)
}

/// [`group_norm`](crate::group_norm) of checked shapes.
pub(crate) fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64, with_silu: bool) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    let x = pixels(x, x.dtype(), 1)?;
    let partials = partials(&x)?;
    let (weight, bias) = (plain(weight)?, plain(bias)?);
    let mut factors = Output::new(x.device(), (batch, channels, 2), DType::F32)?;
    let args = FactorsArgs {
        partials: address(&partials)?,
        weight: address(&weight)?,
        bias: address(&bias)?,
        factors: factors.address()?,
        pixels: (h * w) as i64,
        parts: as_i32(partials.dim(1)?)?,
        channels: as_i32(channels)?,
        groups: as_i32(groups)?,
        eps: eps as f32,
    };
    let launch = Launch { module: Module::Norm, kernel: "group_factors".to_owned(), blocks: batch * groups, threads: 128, shared: 0 };
    // SAFETY: the shapes are those of the tensors.
    unsafe { launch.run(x.device(), &args)? };
    affine(&x, &factors.tensor(), with_silu)
}

/// [`channel_sums`](crate::channel_sums).
pub(crate) fn channel_sums(x: &Tensor) -> Result<Vec<(f64, f64)>> {
    let channels = x.dim(1)?;
    let partials = partials(&pixels(x, x.dtype(), 1)?)?.flatten_all()?.to_vec1::<f32>()?;
    let mut sums = vec![(0.0, 0.0); channels];
    for part in partials.chunks_exact(2 * channels) {
        for (sum, one) in sums.iter_mut().zip(part.chunks_exact(2)) {
            *sum = (sum.0 + f64::from(one[0]), sum.1 + f64::from(one[1]));
        }
    }
    Ok(sums)
}

/// [`channel_affine`](crate::channel_affine) of checked shapes.
pub(crate) fn channel_affine(x: &Tensor, factors: &[(f32, f32)], with_silu: bool) -> Result<Tensor> {
    let values: Vec<f32> = factors.iter().flat_map(|&(a, b)| [a, b]).collect();
    let factors = Tensor::from_vec(values, (factors.len(), 2), x.device())?;
    affine(&pixels(x, x.dtype(), 1)?, &factors, with_silu)
}

/// [`layer_norm`](crate::layer_norm) of checked shapes.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    let channels = weight.elem_count();
    let (weight, bias) = (plain(weight)?, plain(bias)?);
    let (suffix, _) = width(x.dtype(), channels, &[&x])?;
    let rows = x.elem_count() / channels;
    let mut y = Output::new(x.device(), x.shape(), x.dtype())?;
    let args = LayerNormArgs {
        x: address(&x)?,
        weight: address(&weight)?,
        bias: address(&bias)?,
        y: y.address()?,
        rows: rows as i64,
        channels: as_i32(channels)?,
        eps: eps as f32,
    };
    let kernel = format!("layer_norm_{}_{suffix}", name_of(x.dtype())?);
    // SAFETY: the shapes are those of the tensors; a block has eight rows.
    unsafe { Launch { module: Module::Norm, kernel, blocks: rows.div_ceil(8), threads: 256, shared: 0 }.run(x.device(), &args)? };
    Ok(y.tensor())
}

/// A function of the numbers of `x`, or of `x` and `other`, by the kernel `name`. Rows of the result have `channels` numbers.
fn elementwise(name: &str, x: &Tensor, other: Option<&Tensor>, dims: &[usize]) -> Result<Tensor> {
    let channels = dims.last().copied().unwrap_or(1);
    let mut y = Output::new(x.device(), dims, x.dtype())?;
    let (suffix, per_thread) = width(x.dtype(), channels, &[x, other.unwrap_or(x)])?;
    let count = dims.iter().product::<usize>();
    let args =
        MapArgs { x: address(x)?, other: address(other.unwrap_or(x))?, y: y.address()?, count: count as i64, channels: as_i32(channels)? };
    // SAFETY: the callers give operands of these shapes.
    unsafe { pass(format!("{name}_{}_{suffix}", name_of(x.dtype())?), count, per_thread).run(x.device(), &args)? };
    Ok(y.tensor())
}

/// A function of single numbers, by its kernel's name.
pub(crate) fn unary(name: &str, x: &Tensor) -> Result<Tensor> {
    let (x, turned) = dense(x)?;
    let y = elementwise(name, &x, None, x.dims())?;
    if turned { y.permute((0, 3, 1, 2)) } else { Ok(y) }
}

/// [`add`](crate::add) of equal shapes.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (x, turned) = dense(x)?;
    let y = y.to_dtype(x.dtype())?;
    if !turned {
        return elementwise("add", &x, Some(&y.contiguous()?), x.dims());
    }
    elementwise("add", &x, Some(&y.permute((0, 2, 3, 1))?.contiguous()?), x.dims())?.permute((0, 3, 1, 2))
}

/// [`geglu`](crate::geglu); `dims` are those of the result.
pub(crate) fn geglu(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    elementwise("geglu", &x.contiguous()?, None, dims)
}

fn resized(name: &str, x: &Tensor, height: usize, width_: usize) -> Result<Tensor> {
    let x = pixels(x, x.dtype(), 1)?;
    let (batch, h, w, channels) = x.dims4()?;
    let (suffix, per_thread) = width(x.dtype(), channels, &[&x])?;
    let mut y = Output::new(x.device(), (batch, height, width_, channels), x.dtype())?;
    let count = batch * height * width_ * channels;
    let args = ResizeArgs {
        x: address(&x)?,
        y: y.address()?,
        count: count as i64,
        height: as_i32(h)?,
        width: as_i32(w)?,
        out_height: as_i32(height)?,
        out_width: as_i32(width_)?,
        channels: as_i32(channels)?,
    };
    // SAFETY: the shapes are those of the tensors.
    unsafe { pass(format!("{name}_{}_{suffix}", name_of(x.dtype())?), count, per_thread).run(x.device(), &args)? };
    map(y)
}

/// [`resize_bilinear`](crate::resize_bilinear) of checked shapes.
pub(crate) fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    resized("resize_bilinear", x, height, width)
}

/// [`upsample_nearest`](crate::upsample_nearest) of checked shapes.
pub(crate) fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    resized("upsample_nearest", x, height, width)
}

/// [`pool3x3`](crate::pool3x3) of checked shapes; `out` is (height, width) of the result.
pub(crate) fn pool3x3(x: &Tensor, pool: Pool, stride: usize, padding: usize, out: (usize, usize)) -> Result<Tensor> {
    let x = pixels(x, x.dtype(), 1)?;
    let (batch, h, w, channels) = x.dims4()?;
    let (suffix, per_thread) = width(x.dtype(), channels, &[&x])?;
    let mut y = Output::new(x.device(), (batch, out.0, out.1, channels), x.dtype())?;
    let count = batch * out.0 * out.1 * channels;
    let args = PoolArgs {
        x: address(&x)?,
        y: y.address()?,
        count: count as i64,
        height: as_i32(h)?,
        width: as_i32(w)?,
        out_height: as_i32(out.0)?,
        out_width: as_i32(out.1)?,
        channels: as_i32(channels)?,
        stride: as_i32(stride)?,
        padding: as_i32(padding)?,
        average: (pool == Pool::Average).into(),
    };
    // SAFETY: the shapes are those of the tensors.
    unsafe { pass(format!("pool3x3_{}_{suffix}", name_of(x.dtype())?), count, per_thread).run(x.device(), &args)? };
    map(y)
}

/// [`join_channels`](crate::join_channels) of maps that agree in all but their channels.
pub(crate) fn join_channels(parts: &[Tensor]) -> Result<Tensor> {
    let (batch, _, h, w) = parts[0].dims4()?;
    let dtype = parts[0].dtype();
    let all: usize = parts.iter().map(|part| part.dims()[1]).sum();
    let mut y = Output::new(parts[0].device(), (batch, h, w, all), dtype)?;
    let to = y.address()?;
    let mut first = 0;
    for part in parts {
        let x = pixels(part, dtype, 1)?;
        let channels = x.dim(3)?;
        // Each part, and where it starts, in whole 16 bytes.
        let common = [channels, all, first].iter().all(|n| n.is_multiple_of(wide(dtype)));
        let (suffix, per_thread) = width(dtype, if common { channels } else { 1 }, &[&x])?;
        let count = batch * h * w * channels;
        let args =
            JoinArgs { x: address(&x)?, y: to, count: count as i64, channels: as_i32(channels)?, all: as_i32(all)?, first: as_i32(first)? };
        // SAFETY: the shapes are those of the tensors.
        unsafe { pass(format!("join_{}_{suffix}", name_of(dtype)?), count, per_thread).run(x.device(), &args)? };
        first += channels;
    }
    map(y)
}

/// What is done seldom: on the host, in f32.
pub(crate) fn by_host(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let host = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    #[cfg(feature = "emulator")]
    let y = emulator::suspended(|| f(&host))?;
    #[cfg(not(feature = "emulator"))]
    let y = f(&host)?;
    y.to_device(x.device())?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests;
