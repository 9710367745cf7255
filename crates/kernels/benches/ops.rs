//! Time and rate of each operation at the sizes of Stable Diffusion 1.5 and of FID's Inception.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo bench --workspace --bench ops [-- FILTER]
//! ```
//!
//! `item/s` are floating-point operations a second (two to a multiply-add), or elements where nothing is multiplied.

use candle_core::{Device, Tensor};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use scalebench_kernels as kernels;
use scalebench_kernels::{Activation, ConvGeometry, ConvWeight, LinearWeight, Pool, Precision};

fn main() {
    // As the program does: a fresh mapping for every output would time the system's page faults.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only sets parameters; no thread that could allocate meanwhile has been started.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_TOP_PAD, 256 << 20);
    }
    divan::main();
}

/// Numbers in [−0.5, 0.5), the same in every run.
fn numbers(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// 3×3 convolutions: (inputs, outputs, side, dilation), batch 2.
#[divan::bench(args = [
    (320, 320, 64, 1), (960, 320, 64, 1), (640, 640, 32, 1), (1280, 1280, 16, 1), (2560, 1280, 16, 1), (1280, 1280, 8, 1),
    (320, 320, 64, 2), (640, 640, 64, 4), (128, 128, 256, 1),
], consts = [0, 1])]
fn conv3x3<const P: usize>(bencher: Bencher<'_, '_>, (c_in, c_out, side, dilation): (usize, usize, usize, usize)) {
    let weight = ConvWeight::new(&numbers(&[c_out, c_in, 3, 3]), PRECISIONS[P]).unwrap();
    let (x, bias) = (numbers(&[2, c_in, side, side]), numbers(&[c_out]));
    let geometry = ConvGeometry { stride: 1, padding: (dilation, dilation), dilation };
    bencher
        .counter(ItemsCount::new(2 * 18 * c_in * c_out * side * side))
        .bench_local(|| kernels::conv2d(black_box(&x), &weight, Some(&bias), geometry, Activation::Identity).unwrap());
}

/// Dispersed 5×5 kernels: (channels, side, dilation), batch 2.
#[divan::bench(args = [(320, 64, 1), (1280, 32, 1), (1280, 32, 2)], consts = [0, 1])]
fn conv5x5<const P: usize>(bencher: Bencher<'_, '_>, (c, side, dilation): (usize, usize, usize)) {
    let weight = ConvWeight::new(&numbers(&[c, c, 5, 5]), PRECISIONS[P]).unwrap();
    let x = numbers(&[2, c, side, side]);
    let geometry = ConvGeometry { stride: 1, padding: (2 * dilation, 2 * dilation), dilation };
    bencher
        .counter(ItemsCount::new(2 * 50 * c * c * side * side))
        .bench_local(|| kernels::conv2d(black_box(&x), &weight, None, geometry, Activation::Identity).unwrap());
}

/// Convolutions of the Inception network, batch 32: (inputs, outputs, side, height, width of the kernel).
#[divan::bench(args = [(32, 64, 147, 3, 3), (768, 192, 17, 1, 1), (160, 160, 17, 1, 7), (2048, 320, 8, 1, 1)])]
fn inception(bencher: Bencher<'_, '_>, (c_in, c_out, side, kh, kw): (usize, usize, usize, usize, usize)) {
    let weight = ConvWeight::new(&numbers(&[c_out, c_in, kh, kw]), Precision::F32).unwrap();
    let (x, bias) = (numbers(&[32, c_in, side, side]), numbers(&[c_out]));
    let geometry = ConvGeometry { stride: 1, padding: (kh / 2, kw / 2), dilation: 1 };
    bencher
        .counter(ItemsCount::new(32 * 2 * kh * kw * c_in * c_out * side * side))
        .bench_local(|| kernels::conv2d(black_box(&x), &weight, Some(&bias), geometry, Activation::Relu).unwrap());
}

/// (tokens, inputs, outputs).
#[divan::bench(args = [(8192, 320, 320), (8192, 320, 2560), (8192, 1280, 320), (2048, 640, 5120), (512, 1280, 10240), (154, 768, 320)], consts = [0, 1])]
fn linear<const P: usize>(bencher: Bencher<'_, '_>, (tokens, k, n): (usize, usize, usize)) {
    let weight = LinearWeight::new(&numbers(&[n, k]), PRECISIONS[P]).unwrap();
    let (x, bias) = (numbers(&[tokens, k]), numbers(&[n]));
    bencher.counter(ItemsCount::new(2 * tokens * k * n)).bench_local(|| kernels::linear(black_box(&x), &weight, Some(&bias)).unwrap());
}

/// The first half of a transformer's feed-forward layer: (tokens, inputs, outputs before the gate).
#[divan::bench(args = [(8192, 320, 2560), (2048, 640, 5120), (512, 1280, 10240)], consts = [0, 1])]
fn linear_geglu<const P: usize>(bencher: Bencher<'_, '_>, (tokens, k, n): (usize, usize, usize)) {
    let weight = LinearWeight::new(&numbers(&[n, k]), PRECISIONS[P]).unwrap();
    let (x, bias) = (numbers(&[tokens, k]), numbers(&[n]));
    bencher
        .counter(ItemsCount::new(2 * tokens * k * n))
        .bench_local(|| kernels::linear_geglu(black_box(&x), &weight, Some(&bias)).unwrap());
}

/// (queries, keys, heads, head size), batch 2.
#[divan::bench(args = [
    (4096, 4096, 8, 40), (1024, 1024, 8, 80), (256, 256, 8, 160), (4096, 77, 8, 40), (4096, 4096, 5, 64), (4096, 4096, 4, 8), (1024, 1024, 4, 16), (1024, 1024, 4, 24),
    (1024, 1024, 4, 32), (4096, 77, 4, 8), (4096, 4096, 1, 512),
], consts = [0, 1])]
fn attention<const P: usize>(bencher: Bencher<'_, '_>, (n, m, heads, d): (usize, usize, usize, usize)) {
    let (q, k) = (numbers(&[2, n, heads * d]), numbers(&[2, m, heads * d]));
    bencher
        .counter(ItemsCount::new(8 * n * m * heads * d))
        .bench_local(|| kernels::attention(black_box(&q), &k, &k, heads, 0.15, PRECISIONS[P]).unwrap());
}

/// 320 channels of 64 × 64, batch 2.
#[divan::bench]
fn group_norm_silu(bencher: Bencher<'_, '_>) {
    let (x, c) = (numbers(&[2, 320, 64, 64]), numbers(&[320]));
    bencher.counter(ItemsCount::new(x.elem_count())).bench_local(|| kernels::group_norm(black_box(&x), 32, &c, &c, 1e-5, true).unwrap());
}

/// 8192 tokens of 320 channels.
#[divan::bench]
fn layer_norm(bencher: Bencher<'_, '_>) {
    let (x, c) = (numbers(&[2, 4096, 320]), numbers(&[320]));
    bencher.counter(ItemsCount::new(x.elem_count())).bench_local(|| kernels::layer_norm(black_box(&x), &c, &c, 1e-5).unwrap());
}

/// 8192 tokens of 2 × 1280 channels.
#[divan::bench]
fn geglu(bencher: Bencher<'_, '_>) {
    let x = numbers(&[2, 4096, 2560]);
    bencher.counter(ItemsCount::new(x.elem_count())).bench_local(|| kernels::geglu(black_box(&x)).unwrap());
}

/// 320 channels, 64 × 64 to 96 × 96: the resize before a dilation of 2 stands in for one of 4/3.
#[divan::bench]
fn resize_bilinear(bencher: Bencher<'_, '_>) {
    let x = numbers(&[2, 320, 64, 64]);
    bencher.counter(ItemsCount::new(2 * 320 * 96 * 96usize)).bench_local(|| kernels::resize_bilinear(black_box(&x), 96, 96).unwrap());
}

/// 768 channels of 17 × 17, batch 32.
#[divan::bench]
fn average_pool(bencher: Bencher<'_, '_>) {
    let x = numbers(&[32, 768, 17, 17]);
    bencher
        .counter(ItemsCount::new(x.elem_count()))
        .bench_local(|| kernels::pool3x3(black_box(&x), Pool::Average, 1, 1, Activation::Relu).unwrap());
}
