//! Elements of foreign array files: sizes, strides, half precision.

/// Number of elements of a shape, unless it overflows.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere means no elements, however large the other sides are.
    if shape.contains(&0) { Some(0) } else { shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)) }
}

/// One past the largest index that a strided view touches, unless it overflows; strides count elements.
pub(crate) fn end(shape: &[usize], strides: &[usize], offset: usize) -> Option<usize> {
    if shape.contains(&0) {
        return Some(offset);
    }
    let last = shape.iter().zip(strides).try_fold(offset, |at, (side, stride)| at.checked_add((side - 1).checked_mul(*stride)?))?;
    last.checked_add(1)
}

/// The elements of a strided view in row-major order; `element` gives the one at an index.
///
/// The caller has checked [`count`] and [`end`].
pub(crate) fn gather<T>(shape: &[usize], strides: &[usize], offset: usize, element: impl Fn(usize) -> T) -> Vec<T> {
    // A side of one is never stepped along, and its stride may be anything.
    let sides: Vec<(usize, usize)> = shape.iter().copied().zip(strides.iter().copied()).filter(|(side, _)| *side != 1).collect();
    let n = sides.iter().map(|(side, _)| side).product();
    let mut values = Vec::with_capacity(n);
    if n == 0 {
        return values;
    }
    let Some((&(inner, step), outer)) = sides.split_last() else {
        values.push(element(offset));
        return values;
    };
    let mut index = vec![0; outer.len()];
    let mut at = offset;
    loop {
        values.extend((0..inner).map(|k| element(at + k * step)));
        let mut d = outer.len();
        loop {
            if d == 0 {
                return values;
            }
            d -= 1;
            let (side, stride) = outer[d];
            index[d] += 1;
            at += stride;
            if index[d] < side {
                break;
            }
            index[d] = 0;
            at -= side * stride;
        }
    }
}

/// An IEEE 754 half as a single; exact.
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction as f32 / f32::from_bits(0x4b80_0000), // 2^24: subnormal steps
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn halves_are_those_of_the_tensor_library() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let halves = Tensor::from_raw_buffer(&bytes, DType::F16, &[1 << 16], &Device::Cpu).unwrap();
        let expected: Vec<f32> = halves.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        for (bits, expected) in (0..=u16::MAX).zip(expected) {
            let value = half_to_f32(bits);
            assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(), "{bits:04x}: {value}, {expected}");
        }
    }

    /// Against candle's `contiguous` of transposed and narrowed tensors.
    #[test]
    fn views_are_those_of_the_tensor_library() {
        let base = Tensor::arange(0u32, 2 * 3 * 4 * 5, &Device::Cpu).unwrap().reshape((2, 3, 4, 5)).unwrap();
        let views = [
            base.clone(),
            base.permute((3, 0, 2, 1)).unwrap(),
            base.permute((2, 3, 1, 0)).unwrap().narrow(1, 1, 3).unwrap(),
            base.narrow(0, 1, 1).unwrap().transpose(1, 3).unwrap(),
            base.narrow(3, 2, 0).unwrap(),
            base.flatten_all().unwrap().narrow(0, 7, 9).unwrap(),
            base.flatten_all().unwrap().get(11).unwrap(),
            base.narrow(0, 0, 1).unwrap().broadcast_as((6, 3, 4, 5)).unwrap(),
        ];
        for view in views {
            let layout = view.layout();
            let (shape, strides, offset) = (layout.dims(), layout.stride(), layout.start_offset());
            let expected: Vec<u32> = view.contiguous().unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(count(shape), Some(expected.len()));
            assert_eq!(end(shape, strides, offset), Some(expected.iter().max().map_or(offset, |m| *m as usize + 1)));
            assert_eq!(gather(shape, strides, offset, |i| i as u32), expected, "{layout:?}");
        }
        // PyTorch leaves any stride on sides of one.
        assert_eq!(gather(&[2, 1, 2], &[2, usize::MAX, 1], 3, |i| i), [3, 4, 5, 6]);
        assert_eq!(end(&[2, 1, 2], &[2, usize::MAX, 1], 3), Some(7));
        assert_eq!((end(&[3], &[usize::MAX / 2], 2), count(&[1 << 40, 1 << 40]), count(&[1 << 40, 1 << 40, 0])), (None, None, Some(0)));
    }
}
