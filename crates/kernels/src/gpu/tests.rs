//! The GPU's kernels against the CPU's own, which are tested against definitions: in every type, at sizes that fill tiles and that do
//! not. Under emulation in both orders of threads, whose results must be equal to the bit; with the feature `cuda` on the GPU
//! that `SCALEBENCH_TEST_DEVICE` names, twice.

#[cfg(feature = "emulator")]
use super::emulator::{emulated, suspended};
use crate::{Activation, ConvGeometry, ConvWeight, LinearWeight, Pool, Precision};
use candle_core::{DType, Device, Result, Shape, Tensor};

const TYPES: [(DType, f32); 3] = [(DType::F32, 3e-6), (DType::F16, 2e-3), (DType::BF16, 1.6e-2)];

fn data(shape: impl Into<Shape>, a: f32) -> Tensor {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count()).map(|i| (i as f32 * a).sin() + 0.3 * (i as f32 * 0.37 * a).cos()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Where a function runs, and in which type.
struct On {
    device: Device,
    /// That numbers are rounded to.
    dtype: DType,
    /// Of the tensors that hold them.
    held: DType,
}

impl On {
    /// What is rounded on the way in.
    fn round(&self, t: &Tensor) -> Tensor {
        self.keep(&t.to_dtype(self.dtype).unwrap().to_dtype(self.held).unwrap())
    }

    /// What stays as it is.
    fn keep(&self, t: &Tensor) -> Tensor {
        t.to_device(&self.device).unwrap()
    }
}

/// Runs `f` on the GPU twice: an emulated one, whose threads take turns in one order, then in the other; else the one that was asked
/// for. None if there is neither.
fn on_gpus<R>(f: impl Fn(&Device) -> R) -> Option<[R; 2]> {
    #[cfg(feature = "emulator")]
    return Some([false, true].map(|reversed| emulated(reversed, || f(&Device::Cpu))));
    #[cfg(not(feature = "emulator"))]
    {
        let name = std::env::var("SCALEBENCH_TEST_DEVICE").ok()?;
        let device = name.parse::<crate::DeviceId>().unwrap().open().unwrap();
        Some([f(&device), f(&device)])
    }
}

/// Runs `f` on the CPU and on a GPU, on inputs rounded to each type, and compares by the largest difference relative to the largest
/// number.
fn agree(what: &str, factor: f32, f: impl Fn(&On) -> Result<Tensor>) {
    for (dtype, tolerance) in TYPES {
        let want = numbers(&f(&On { device: Device::Cpu, dtype, held: DType::F32 }).unwrap());
        let got = on_gpus(|device| f(&On { device: device.clone(), dtype, held: dtype }).map(|t| numbers(&t)).unwrap());
        let Some([got, again]) = got else { return };
        assert_eq!(got.len(), want.len(), "{what} {dtype:?}");
        assert!(got.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{what} {dtype:?}: the order of threads matters");
        let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, |m, e| if e.is_nan() { f32::NAN } else { m.max(e) });
        assert!(error <= tolerance * factor * size, "{what} {dtype:?}: {error:e} of {size:e}");
    }
}

#[test]
fn convolutions() {
    // (batch, c_in, h, w, c_out, kernel, stride, padding, dilation): many tiles, odd channels, strides, dilations, one pixel.
    for (i, (batch, c_in, h, w, c_out, k, stride, padding, dilation)) in [
        (2, 16, 9, 7, 24, 3, 1, 1, 1),
        (1, 4, 12, 10, 70, 3, 2, 1, 1),
        (1, 40, 8, 8, 130, 3, 1, 3, 3),
        (1, 3, 9, 9, 5, 5, 2, 0, 1),
        (2, 24, 1, 1, 3, 1, 1, 0, 1),
        (1, 8, 20, 20, 8, 5, 1, 4, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let (x, weight) = (data((batch, c_in, h, w), 0.31), data((c_out, c_in, k, k), 0.73));
        let bias = if i % 2 == 0 { data(c_out, 1.7) } else { data((batch, c_out), 1.7) };
        let geometry = ConvGeometry { stride, padding: (padding, padding), dilation };
        let activation = if i == 2 { Activation::Relu } else { Activation::Identity };
        agree(&format!("convolution {i}"), 2.0, |on| {
            crate::conv2d(&on.round(&x), &ConvWeight::new(&on.round(&weight), Precision::F32)?, Some(&on.keep(&bias)), geometry, activation)
        });
    }
}

/// Large tiles are taken where there are many of them, and give the same bits as small ones: images do not depend on batches.
#[test]
fn tiles_of_both_sizes_sum_in_the_same_order() {
    let (x, weight) = (data((33, 16, 16, 16), 0.31), data((256, 16, 1, 1), 0.73));
    on_gpus(|device| {
        for (dtype, _) in TYPES {
            let on = On { device: device.clone(), dtype, held: dtype };
            let (x, weight) = (on.round(&x), ConvWeight::new(&on.round(&weight), Precision::F32).unwrap());
            let run = |x: &Tensor| crate::conv2d(x, &weight, None, ConvGeometry::padded(0), Activation::Identity).unwrap();
            let (all, one) = (run(&x), run(&x.narrow(0, 32, 1).unwrap()));
            assert_eq!(numbers(&all.narrow(0, 32, 1).unwrap()), numbers(&one), "{dtype:?}");
        }
    });
}

#[test]
fn kernels_come_back_as_they_went() {
    let weight = data((5, 6, 3, 3), 0.7);
    let back = |device: &Device| numbers(&ConvWeight::new(&weight.to_device(device).unwrap(), Precision::F32).unwrap().tensor().unwrap());
    on_gpus(|device| assert_eq!(back(device), numbers(&weight)));
}

#[test]
fn projections() {
    for (batch, h, w, k, n) in [(2, 6, 5, 24, 40), (1, 1, 1, 7, 65), (2, 3, 5, 100, 130)] {
        let (x, weight, bias) = (data((batch, k, h, w), 0.3), data((n, k), 0.7), data(n, 1.7));
        let (back, back_bias) = (data((k, n), 0.9), data(k, 0.4));
        let tokens = x.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        agree("linear", 2.0, |on| {
            crate::linear(&on.round(&tokens), &LinearWeight::new(&on.round(&weight), Precision::F32)?, Some(&on.keep(&bias)))
        });
        agree("map to tokens", 2.0, |on| {
            crate::map_to_tokens(&on.round(&x), &LinearWeight::new(&on.round(&weight), Precision::F32)?, &on.keep(&bias))
        });
        let y = data((batch, h * w, n), 0.23);
        agree("tokens to map", 2.0, |on| {
            crate::tokens_to_map(&on.round(&y), &ConvWeight::new(&on.round(&back), Precision::F32)?, &on.keep(&back_bias), &on.round(&x))
        });
    }
}

#[test]
fn attentions() {
    // Sizes with a kernel, some that are filled up, and two that go in strips; more keys than a tile, and few.
    for (batch, n, m, heads, d) in [
        (1, 130, 150, 2, 40),
        (2, 20, 77, 2, 64),
        (1, 70, 33, 1, 80),
        (1, 9, 100, 2, 160),
        (2, 40, 5, 3, 8),
        (1, 33, 70, 1, 200),
        (1, 33, 70, 2, 163),
        (1, 12, 9, 2, 6),
    ] {
        let (q, k, v) = (data((batch, n, heads * d), 0.7), data((batch, m, heads * d), 0.3), data((batch, m, heads * d), 0.9));
        agree(&format!("attention {n} {m} {heads} {d}"), 3.0, |on| {
            crate::attention(&on.round(&q), &on.round(&k), &on.round(&v), heads, 1.0 / (d as f64).sqrt(), Precision::F32)
        });
    }
    // Peaks that grow from tile to tile, far from zero.
    let q = (data((1, 40, 16), 0.7) * 30.0).unwrap();
    agree("peaked attention", 30.0, |on| crate::attention(&on.round(&q), &on.round(&q), &on.round(&q), 1, 0.25, Precision::F32));
}

#[test]
fn norms() {
    for (batch, c, h, w, groups) in [(2, 32, 9, 20, 8), (1, 10, 3, 3, 5), (1, 320, 2, 3, 32), (1, 2056, 2, 2, 4)] {
        let x = (data((batch, c, h, w), 0.31) + 5.0).unwrap();
        let (weight, bias) = (data(c, 0.7), data(c, 1.3));
        for with_silu in [false, true] {
            agree("group norm", 4.0, |on| crate::group_norm(&on.round(&x), groups, &on.keep(&weight), &on.keep(&bias), 1e-5, with_silu));
        }
        agree("channel sums", 1.0, |on| {
            let sums = crate::channel_sums(&on.round(&x))?;
            Tensor::from_iter(sums.into_iter().flat_map(|(a, b)| [a as f32, b as f32]), &Device::Cpu)
        });
        let factors: Vec<(f32, f32)> = numbers(&weight).into_iter().zip(numbers(&bias)).collect();
        agree("channel affine", 2.0, |on| crate::channel_affine(&on.round(&x), &factors, true));
        let tokens = x.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        agree("layer norm", 4.0, |on| crate::layer_norm(&on.round(&tokens), &on.keep(&weight), &on.keep(&bias), 1e-5));
    }
}

#[test]
fn passes_over_maps() {
    for c in [16, 3] {
        let (x, y) = (data((2, c, 7, 9), 0.31), data((2, 2 * c, 7, 9), 0.57));
        // As a convolution leaves them.
        let turned = |t: &Tensor| t.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        agree("resize", 1.0, |on| crate::resize_bilinear(&on.round(&x), 10, 13));
        agree("reduce", 1.0, |on| crate::resize_bilinear(&turned(&on.round(&x)), 4, 3));
        agree("nearest", 1.0, |on| crate::upsample_nearest(&on.round(&x), 13, 18));
        agree("bicubic", 1.0, |on| crate::enlarge_bicubic(&on.round(&x), 10, 13));
        agree("low frequencies", 1.0, |on| crate::scale_low_frequencies(&turned(&on.round(&x)), 0.3));
        for (pool, stride, padding) in [(Pool::Max, 2, 0), (Pool::Average, 1, 1)] {
            agree("pool", 1.0, |on| crate::pool3x3(&on.round(&x), pool, stride, padding, Activation::Relu));
        }
        agree("join", 1.0, |on| crate::join_channels(&[on.round(&x), turned(&on.round(&y)), on.round(&x)]));
        agree("add", 1.0, |on| crate::add(&turned(&on.round(&x)), &on.round(&x)));
        let tokens = data((2, 5, 4 * c), 2.1);
        for (name, f) in [("silu", crate::silu as fn(&Tensor) -> Result<Tensor>), ("gelu", crate::gelu), ("quick gelu", crate::quick_gelu)]
        {
            agree(name, 2.0, |on| f(&on.round(&tokens)));
            agree(name, 2.0, |on| f(&turned(&on.round(&x))));
        }
        agree("geglu", 2.0, |on| crate::geglu(&on.round(&tokens)));
    }
}

#[cfg(feature = "emulator")]
/// Host work inside an emulated call is the CPU's own.
#[test]
fn emulation_can_be_suspended() {
    let x = data((1, 1, 2, 2), 1.0);
    emulated(false, || {
        assert!(super::takes(&x));
        suspended(|| assert!(!super::takes(&x)));
    });
    assert!(!super::takes(&x) || std::env::var_os("SCALEBENCH_TEST_DEVICE").is_some());
}
