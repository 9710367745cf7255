//! The GPU's kernels under emulation, against the CPU's own, which are tested against definitions: in every type, at sizes that fill
//! tiles and that do not, and in both orders of threads, whose results must be equal to the bit.

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

/// Runs `f` on the CPU and under emulation, on inputs rounded to each type, and compares by the largest difference relative to the
/// largest number. `f` gets a function that rounds what is on the way in.
fn agree(what: &str, factor: f32, f: impl Fn(&dyn Fn(&Tensor) -> Tensor) -> Result<Tensor>) {
    for (dtype, tolerance) in TYPES {
        let rounded = |t: &Tensor| t.to_dtype(dtype).unwrap();
        let want = numbers(&f(&|t| rounded(t).to_dtype(DType::F32).unwrap()).unwrap());
        let got = emulated(false, || f(&rounded).map(|t| numbers(&t)).unwrap());
        let turned = emulated(true, || f(&rounded).map(|t| numbers(&t)).unwrap());
        assert_eq!(got.len(), want.len(), "{what} {dtype:?}");
        assert!(got.iter().zip(&turned).all(|(a, b)| a.to_bits() == b.to_bits()), "{what} {dtype:?}: the order of threads matters");
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
        agree(&format!("convolution {i}"), 2.0, |round| {
            crate::conv2d(&round(&x), &ConvWeight::new(&round(&weight), Precision::F32)?, Some(&bias), geometry, activation)
        });
    }
}

/// Large tiles are taken where there are many of them, and give the same bits as small ones: images do not depend on batches.
#[test]
fn tiles_of_both_sizes_sum_in_the_same_order() {
    let (x, weight) = (data((33, 16, 16, 16), 0.31), data((256, 16, 1, 1), 0.73));
    emulated(false, || {
        for (dtype, _) in TYPES {
            let (x, weight) = (x.to_dtype(dtype).unwrap(), ConvWeight::new(&weight.to_dtype(dtype).unwrap(), Precision::F32).unwrap());
            let run = |x: &Tensor| crate::conv2d(x, &weight, None, ConvGeometry::padded(0), Activation::Identity).unwrap();
            let (all, one) = (run(&x), run(&x.narrow(0, 32, 1).unwrap()));
            assert_eq!(numbers(&all.narrow(0, 32, 1).unwrap()), numbers(&one), "{dtype:?}");
        }
    });
}

#[test]
fn kernels_come_back_as_they_went() {
    let weight = data((5, 6, 3, 3), 0.7);
    let back = emulated(false, || ConvWeight::new(&weight, Precision::F32).unwrap().tensor().unwrap());
    assert_eq!(numbers(&back), numbers(&weight));
}

#[test]
fn projections() {
    for (batch, h, w, k, n) in [(2, 6, 5, 24, 40), (1, 1, 1, 7, 65), (2, 3, 5, 100, 130)] {
        let (x, weight, bias) = (data((batch, k, h, w), 0.3), data((n, k), 0.7), data(n, 1.7));
        let (back, back_bias) = (data((k, n), 0.9), data(k, 0.4));
        let tokens = x.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        agree("linear", 2.0, |round| crate::linear(&round(&tokens), &LinearWeight::new(&round(&weight), Precision::F32)?, Some(&bias)));
        agree("map to tokens", 2.0, |round| crate::map_to_tokens(&round(&x), &LinearWeight::new(&round(&weight), Precision::F32)?, &bias));
        let y = data((batch, h * w, n), 0.23);
        agree("tokens to map", 2.0, |round| {
            crate::tokens_to_map(&round(&y), &ConvWeight::new(&round(&back), Precision::F32)?, &back_bias, &round(&x))
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
        agree(&format!("attention {n} {m} {heads} {d}"), 3.0, |round| {
            crate::attention(&round(&q), &round(&k), &round(&v), heads, 1.0 / (d as f64).sqrt(), Precision::F32)
        });
    }
    // Peaks that grow from tile to tile, far from zero.
    let q = (data((1, 40, 16), 0.7) * 30.0).unwrap();
    agree("peaked attention", 30.0, |round| crate::attention(&round(&q), &round(&q), &round(&q), 1, 0.25, Precision::F32));
}

#[test]
fn norms() {
    for (batch, c, h, w, groups) in [(2, 32, 9, 20, 8), (1, 10, 3, 3, 5), (1, 320, 2, 3, 32), (1, 2056, 2, 2, 4)] {
        let x = (data((batch, c, h, w), 0.31) + 5.0).unwrap();
        let (weight, bias) = (data(c, 0.7), data(c, 1.3));
        for with_silu in [false, true] {
            agree("group norm", 4.0, |round| crate::group_norm(&round(&x), groups, &weight, &bias, 1e-5, with_silu));
        }
        agree("channel sums", 1.0, |round| {
            let sums = crate::channel_sums(&round(&x))?;
            Tensor::from_iter(sums.into_iter().flat_map(|(a, b)| [a as f32, b as f32]), &Device::Cpu)
        });
        let factors: Vec<(f32, f32)> = numbers(&weight).into_iter().zip(numbers(&bias)).collect();
        agree("channel affine", 2.0, |round| crate::channel_affine(&round(&x), &factors, true));
        let tokens = x.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        agree("layer norm", 4.0, |round| crate::layer_norm(&round(&tokens), &weight, &bias, 1e-5));
    }
}

#[test]
fn passes_over_maps() {
    for c in [16, 3] {
        let (x, y) = (data((2, c, 7, 9), 0.31), data((2, 2 * c, 7, 9), 0.57));
        // As a convolution leaves them.
        let turned = |t: &Tensor| t.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        agree("resize", 1.0, |round| crate::resize_bilinear(&round(&x), 10, 13));
        agree("reduce", 1.0, |round| crate::resize_bilinear(&turned(&round(&x)), 4, 3));
        agree("nearest", 1.0, |round| crate::upsample_nearest(&round(&x), 13, 18));
        agree("bicubic", 1.0, |round| crate::enlarge_bicubic(&round(&x), 10, 13));
        agree("low frequencies", 1.0, |round| crate::scale_low_frequencies(&turned(&round(&x)), 0.3));
        for (pool, stride, padding) in [(Pool::Max, 2, 0), (Pool::Average, 1, 1)] {
            agree("pool", 1.0, |round| crate::pool3x3(&round(&x), pool, stride, padding));
        }
        agree("join", 1.0, |round| crate::join_channels(&[round(&x), turned(&round(&y)), round(&x)]));
        agree("add", 1.0, |round| crate::add(&turned(&round(&x)), &round(&x)));
        let tokens = data((2, 5, 4 * c), 2.1);
        for (name, f) in [("silu", crate::silu as fn(&Tensor) -> Result<Tensor>), ("gelu", crate::gelu), ("quick gelu", crate::quick_gelu)]
        {
            agree(name, 2.0, |round| f(&round(&tokens)));
            agree(name, 2.0, |round| f(&turned(&round(&x))));
        }
        agree("geglu", 2.0, |round| crate::geglu(&round(&tokens)));
    }
}

/// Host work inside an emulated call is the CPU's own.
#[test]
fn emulation_can_be_suspended() {
    let x = data((1, 1, 2, 2), 1.0);
    emulated(false, || {
        assert!(super::takes(&x));
        suspended(|| assert!(!super::takes(&x)));
    });
    assert!(!super::takes(&x) || std::env::var_os("SCALEBENCH_EMULATOR").is_some());
}
