//! Gaussian noise as `torch.manual_seed(seed)` and `torch.randn` draw it on the CPU.
//!
//! Drawn on the host always, so that it is independent of device, batch size and thread count.

use candle_core::{Device, Result, Shape, Tensor};
use scalebench_kernels::MersenneTwister;

/// A torch CPU generator: MT19937 and the cached second value of the scalar normal distribution.
#[derive(Debug, Clone)]
pub(crate) struct Generator {
    twister: MersenneTwister,
    cached: Option<f64>,
}

impl Generator {
    /// `torch.Generator().manual_seed(seed)`; like torch, only the low 32 bits count.
    pub(crate) fn new(seed: u64) -> Self {
        Self { twister: MersenneTwister::new(seed as u32), cached: None }
    }

    fn u32(&mut self) -> u32 {
        self.twister.next_u32()
    }

    /// In [0, 1), 24 bits.
    pub(crate) fn uniform_f32(&mut self) -> f32 {
        (self.u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// In [0, 1), 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let bits = (u64::from(self.u32()) << 32) | u64::from(self.u32());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// The scalar path: Box–Muller in f64, the second value kept for the next call.
    fn normal_f64(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = std::f64::consts::TAU * u1;
        self.cached = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// The next `n` values of `torch.randn`.
    ///
    /// Short requests take the scalar path; from 16 values on torch fills uniforms and transforms
    /// blocks of 16 in place, redrawing the last 16 when the length is not a multiple of 16.
    pub(crate) fn normals(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal_f64() as f32).collect();
        }
        let mut data: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        let (blocks, _) = data.as_chunks_mut::<16>();
        transform(blocks);
        if !n.is_multiple_of(16) {
            let tail = data.last_chunk_mut::<16>().expect("n is at least 16");
            tail.iter_mut().for_each(|x| *x = self.uniform_f32());
            transform(std::slice::from_mut(tail));
        }
        data
    }

    /// A tensor of standard normals, f32, row-major.
    pub(crate) fn randn(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        Tensor::from_vec(self.normals(shape.elem_count()), shape, &Device::Cpu)
    }
}

/// Box–Muller on every block, with the processor's fused operations where it has them.
fn transform(blocks: &mut [[f32; 16]]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || blocks.iter_mut().for_each(box_muller),
    );
}

/// Box–Muller on 8 + 8 uniforms in place, to torch's last bit.
///
/// torch computes this with AVX2 and the f32 polynomials of the Cephes library; its compiler fuses
/// products into sums, so the fused operations below are part of the definition.
#[inline(always)]
fn box_muller(block: &mut [f32; 16]) {
    for i in 0..8 {
        let radius = (-2.0 * ln(1.0 - block[i])).sqrt();
        let (sin, cos) = sin_cos((2.0 * std::f64::consts::PI) as f32 * block[i + 8]);
        block[i] = radius * cos;
        block[i + 8] = radius * sin;
    }
}

/// Natural logarithm of a normal number in (0, 1].
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the digits of Cephes")]
fn ln(x: f32) -> f32 {
    const P: [f32; 8] = [
        -1.151_461_031_0e-1,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ];
    let bits = x.to_bits();
    let mut exponent = ((bits >> 23) as i32 - 126) as f32;
    let mut m = f32::from_bits((bits & 0x807f_ffff) | 0x3f00_0000);
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        m = (m - 1.0) + m;
    } else {
        m -= 1.0;
    }
    let z = m * m;
    let mut y = 7.037_683_629_2e-2f32;
    for p in P {
        y = y.mul_add(m, p);
    }
    y *= m;
    y = y.mul_add(z, exponent * -2.121_944_40e-4);
    y = (-z).mul_add(0.5, y);
    exponent.mul_add(0.693_359_375, m + y)
}

/// Sine and cosine of a number in [0, 2π).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the digits of Cephes")]
fn sin_cos(x: f32) -> (f32, f32) {
    // The octant, rounded up to an even one.
    let octant = ((x * 1.273_239_544_735_16) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-0.785_156_25, x);
    let x = y.mul_add(-2.418_756_484_985_351_6e-4, x);
    let x = y.mul_add(-3.774_894_977_445_941_1e-8, x);
    let z = x * x;
    let c = 2.443_315_711_809_948e-5f32.mul_add(z, -1.388_731_625_493_765e-3).mul_add(z, 4.166_664_568_298_827e-2);
    let c = (c * z).mul_add(z, -(z * 0.5)) + 1.0;
    let s = (-1.951_529_589_1e-4f32).mul_add(z, 8.332_160_873_6e-3).mul_add(z, -1.666_665_461_1e-1);
    let s = (s * z).mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (s, c) } else { (c, s) };
    let sign = |value: f32, negative: bool| if negative { -value } else { value };
    (sign(sin, octant & 4 != 0), sign(cos, (octant - 2) & 4 == 0))
}
