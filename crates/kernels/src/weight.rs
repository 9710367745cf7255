//! Weights laid out once, at load, for the products that use them.

use crate::product::{DEPTH, Left, PANEL, Precision, Right};
use crate::view::{tensor, with_slice};
use crate::words;
use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use std::fmt;

/// The weight of [`conv2d`](crate::conv2d), or of [`tokens_to_map`](crate::tokens_to_map) if its kernels are 1×1.
///
/// ```
/// use candle_core::{DType, Device};
/// use scalebench_kernels::{ConvWeight, Precision, Tensor};
/// // A third is no `bf16` number; the nearest has eight binary digits.
/// let thirds = Tensor::full(1f32 / 3.0, (2, 1, 3, 5), &Device::Cpu)?;
/// let weight = ConvWeight::new(&thirds, Precision::Bf16)?;
/// assert_eq!((weight.kernel(), weight.dtype(), weight.precision()), ((3, 5), DType::F32, Precision::Bf16));
/// assert_eq!(weight.tensor()?.flatten_all()?.to_vec1::<f32>()?, [171.0 / 512.0; 30]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ConvWeight {
    /// (outputs, inputs, height, width) of the kernels.
    pub(crate) dims: (usize, usize, usize, usize),
    pub(crate) precision: Precision,
    /// `(outputs, words of the inputs, height, width)`: with [`Precision::Bf16`], a word joins a tap of two input channels.
    words: Vec<u32>,
    /// On a GPU, instead: `(outputs, height, width, inputs)`.
    #[cfg(gpu)]
    pub(crate) on_gpu: Option<Tensor>,
}

impl ConvWeight {
    /// From `weight` `(c_out, c_in, kh, kw)`, or `(c_out, c_in)` for 1×1 kernels: on the CPU `f32`; on a GPU of the type that is
    /// to be multiplied in, whatever the precision.
    /// Example: [`ConvWeight`].
    pub fn new(weight: &Tensor, precision: Precision) -> Result<Self> {
        let dims = match *weight.dims() {
            [c_out, c_in] => (c_out, c_in, 1, 1),
            _ => weight.dims4()?,
        };
        #[cfg(gpu)]
        if crate::gpu::takes(weight) {
            let weight = crate::gpu::lay_out_kernels(&weight.reshape(dims)?)?;
            return Ok(Self { dims, precision, words: Vec::new(), on_gpu: Some(weight) });
        }
        let (_, c_in, kh, kw) = dims;
        let (taps, from) = (kh * kw, c_in * kh * kw);
        let words = with_slice(weight, |weight| {
            if precision == Precision::F32 {
                return Ok(weight.iter().map(|v| v.to_bits()).collect());
            }
            let to = precision.words(c_in) * taps;
            let mut words = vec![0u32; weight.len() / from.max(1) * to];
            words.par_chunks_exact_mut(to.max(1)).zip(weight.par_chunks_exact(from.max(1))).for_each(|(words, weight)| {
                for (word, pair) in words.chunks_exact_mut(taps).zip(weight.chunks(2 * taps)) {
                    let (low, high) = pair.split_at(taps);
                    words::joined(low, high, word);
                }
            });
            Ok(words)
        })?;
        Ok(Self {
            dims,
            precision,
            words,
            #[cfg(gpu)]
            on_gpu: None,
        })
    }

    /// The kernels, `(c_out, c_in, kh, kw)`, `f32`; rounded if the precision is [`Precision::Bf16`].
    /// Example: [`ConvWeight`].
    pub fn tensor(&self) -> Result<Tensor> {
        let (c_out, c_in, kh, kw) = self.dims;
        #[cfg(gpu)]
        if let Some(weight) = &self.on_gpu {
            return crate::gpu::kernels(weight, c_in);
        }
        let (taps, row) = (kh * kw, self.row());
        let mut values = Vec::with_capacity(c_out * c_in * taps);
        for kernels in self.words.chunks_exact(row) {
            for c in 0..c_in {
                values.extend((0..taps).map(|t| match self.precision {
                    Precision::F32 => f32::from_bits(kernels[c * taps + t]),
                    Precision::Bf16 => words::apart(kernels[c / 2 * taps + t])[c % 2],
                }));
            }
        }
        tensor(values, self.dims)
    }

    /// The kernels of one output, as words `(words of the inputs, height, width)`.
    pub(crate) fn kernels(&self, c_out: usize) -> &[u32] {
        &self.words[c_out * self.row()..][..self.row()]
    }

    /// Words of the kernels of one output.
    pub(crate) fn row(&self) -> usize {
        let (_, c_in, kh, kw) = self.dims;
        self.precision.words(c_in) * kh * kw
    }

    /// The kernels of the outputs from `first` on, from word `start` on.
    pub(crate) fn left(&self, first: usize, start: usize) -> Left {
        Left { ptr: self.words[first * self.row() + start..].as_ptr(), row: self.row() }
    }

    /// The type of what it was made from.
    /// Example: [`ConvWeight`].
    pub fn dtype(&self) -> DType {
        #[cfg(gpu)]
        if let Some(weight) = &self.on_gpu {
            return weight.dtype();
        }
        DType::F32
    }

    /// Of the products with it.
    /// Example: [`ConvWeight`].
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Kernel size, (height, width).
    /// Example: [`ConvWeight`].
    pub fn kernel(&self) -> (usize, usize) {
        (self.dims.2, self.dims.3)
    }
}

impl fmt::Debug for ConvWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConvWeight({:?}, {:?})", self.dims, self.precision)
    }
}

/// The weight of [`linear`](crate::linear) and [`map_to_tokens`](crate::map_to_tokens).
///
/// ```
/// use candle_core::{DType, Device};
/// use scalebench_kernels::{ConvWeight, LinearWeight, Precision, Tensor, geglu, linear, linear_geglu, map_to_tokens, tokens_to_map};
/// // Under the identity a map becomes tokens, one a pixel, and these become a map again.
/// let eye = Tensor::eye(2, DType::F32, &Device::Cpu)?;
/// let weight = LinearWeight::new(&eye, Precision::F32)?;
/// let (x, zeros) = (Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((1, 2, 2, 2))?, Tensor::zeros(2, DType::F32, &Device::Cpu)?);
/// let tokens = map_to_tokens(&x, &weight, &zeros)?;
/// assert_eq!(tokens.to_vec3::<f32>()?, [[[0.0, 4.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]]);
/// assert_eq!(linear(&tokens, &weight, None)?.to_vec3::<f32>()?, tokens.to_vec3::<f32>()?);
/// // The map itself is added as the residual.
/// let twice = tokens_to_map(&tokens, &ConvWeight::new(&eye, Precision::F32)?, &zeros, &x)?;
/// assert_eq!(twice.flatten_all()?.to_vec1::<f32>()?, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]);
/// assert_eq!(weight.outputs(), 2);
/// assert_eq!(linear_geglu(&tokens, &weight, None)?.to_vec3::<f32>()?, geglu(&tokens)?.to_vec3::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct LinearWeight {
    /// (outputs, inputs).
    pub(crate) dims: (usize, usize),
    pub(crate) precision: Precision,
    /// The transposed matrix in panels, `(⌈outputs / PANEL⌉, words of the inputs, PANEL)`.
    words: Vec<u32>,
    /// On a GPU, instead: `(outputs, 1, 1, inputs)`.
    #[cfg(gpu)]
    pub(crate) on_gpu: Option<Tensor>,
}

impl LinearWeight {
    /// From `weight` `(n, k)`, of the types of [`ConvWeight::new`].
    /// Example: [`LinearWeight`].
    pub fn new(weight: &Tensor, precision: Precision) -> Result<Self> {
        let dims @ (n, k) = weight.dims2()?;
        #[cfg(gpu)]
        if crate::gpu::takes(weight) {
            let weight = crate::gpu::lay_out_kernels(&weight.reshape((n, k, 1, 1))?)?;
            return Ok(Self { dims, precision, words: Vec::new(), on_gpu: Some(weight) });
        }
        let words = with_slice(weight, |weight| Ok(panels(weight, n, k, precision)))?;
        Ok(Self {
            dims,
            precision,
            words,
            #[cfg(gpu)]
            on_gpu: None,
        })
    }

    /// Number of outputs.
    /// Example: [`LinearWeight`].
    pub fn outputs(&self) -> usize {
        self.dims.0
    }

    /// The matrix for the outputs from `first`, a multiple of [`PANEL`], on.
    pub(crate) fn right(&self, first: usize) -> Right {
        let panel = self.precision.words(self.dims.1) * PANEL;
        Right { ptr: self.words[first / PANEL * panel..].as_ptr(), panel }
    }
}

impl fmt::Debug for LinearWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinearWeight({:?}, {:?})", self.dims, self.precision)
    }
}

/// The transpose of `n` rows of `k` numbers as a right operand.
fn panels(from: &[f32], n: usize, k: usize, precision: Precision) -> Vec<u32> {
    let depth = precision.words(k);
    let mut words = vec![0u32; n.div_ceil(PANEL) * depth * PANEL];
    words.par_chunks_exact_mut((depth * PANEL).max(1)).enumerate().for_each(|(i, panel)| {
        let rows = (i * PANEL..n.min((i + 1) * PANEL)).map(|row| &from[row * k..][..k]);
        transpose(rows, precision, panel);
    });
    words
}

/// Writes rows of numbers as the columns of one panel, whose other columns stay as they are.
pub(crate) fn transpose<'a>(rows: impl Iterator<Item = &'a [f32]>, precision: Precision, panel: &mut [u32]) {
    let mut line = [0u32; DEPTH];
    for (column, row) in rows.enumerate() {
        let per_word = row.len().div_ceil(precision.words(row.len()).max(1));
        for (block, row) in row.chunks(per_word * DEPTH).enumerate() {
            let line = &mut line[..precision.words(row.len())];
            words::rows(row, row.len(), precision, line);
            let panel = panel[block * DEPTH * PANEL..].iter_mut().skip(column).step_by(PANEL);
            panel.zip(line).for_each(|(to, word)| *to = *word);
        }
    }
}
