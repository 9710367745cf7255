//! Gaussian noise as `torch.manual_seed(seed)` and `torch.randn` draw it on the CPU.
//!
//! Drawn on the host always, so that it is independent of device, batch size and thread count.

use candle_core::{Device, Result, Shape, Tensor};

const N: usize = 624;

/// A torch CPU generator: MT19937 and the cached second value of the scalar normal distribution.
#[derive(Debug, Clone)]
pub struct Generator {
    state: [u32; N],
    next: usize,
    cached: Option<f64>,
}

impl Generator {
    /// `torch.Generator().manual_seed(seed)`; like torch, only the low 32 bits count.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N, cached: None }
    }

    fn u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 0 { 0 } else { 0x9908_b0df };
                self.state[i] = self.state[(i + 397) % N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// In [0, 1), 24 bits.
    fn uniform_f32(&mut self) -> f32 {
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
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal_f64() as f32).collect();
        }
        let mut data: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        let (blocks, _) = data.as_chunks_mut::<16>();
        blocks.iter_mut().for_each(box_muller);
        if !n.is_multiple_of(16) {
            let tail = data.last_chunk_mut::<16>().expect("n is at least 16");
            tail.iter_mut().for_each(|x| *x = self.uniform_f32());
            box_muller(tail);
        }
        data
    }

    /// A tensor of standard normals, f32, row-major.
    pub fn randn(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        Tensor::from_vec(self.normals(shape.elem_count()), shape, &Device::Cpu)
    }
}

fn box_muller(block: &mut [f32; 16]) {
    for i in 0..8 {
        let u1 = 1.0 - block[i];
        let u2 = block[i + 8];
        // torch evaluates log, sin and cos by f32 polynomials; the exact values are within 2e-6.
        let radius = (-2.0 * f64::from(u1).ln()).sqrt();
        let theta = std::f64::consts::TAU * f64::from(u2);
        block[i] = (radius * theta.cos()) as f32;
        block[i + 8] = (radius * theta.sin()) as f32;
    }
}
