//! From tensors to slices and back.

use candle_core::{CpuStorage, Device, Result, Shape, Storage, Tensor, bail};

/// Calls `f` with the elements of a contiguous `f32` CPU tensor, in row-major order.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        bail!("expected an f32 tensor on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device());
    };
    let start = layout.start_offset();
    f(&data[start..start + layout.shape().elem_count()])
}

/// A tensor that owns `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// A raw pointer that threads may share to write disjoint parts of one buffer.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

impl SharedMut {
    pub(crate) fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// The address of element `offset`.
    ///
    /// # Safety
    /// `offset` must lie inside the buffer, and no two threads may write the same element.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller keeps `offset` inside the allocation.
        unsafe { self.0.add(offset) }
    }
}

// SAFETY: users of `at` promise to write disjoint elements, so sharing the pointer cannot race.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

/// A strided matrix in memory: element `(i, j)` is at `ptr + i * row + j * col`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) ptr: *const f32,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// `dst = beta · lhs · rhs (+ dst if accumulate)`, single-threaded; `dst` has unit column stride.
///
/// # Safety
/// All three matrices must be valid for the given sizes, and `dst` must not overlap the inputs.
#[allow(clippy::too_many_arguments)] // A BLAS signature: sizes, then operands.
pub(crate) unsafe fn gemm(
    m: usize,
    n: usize,
    k: usize,
    dst: *mut f32,
    dst_row: usize,
    accumulate: bool,
    lhs: Matrix,
    rhs: Matrix,
    beta: f32,
) {
    // SAFETY: forwarded from the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            dst_row as isize,
            accumulate,
            lhs.ptr,
            lhs.col as isize,
            lhs.row as isize,
            rhs.ptr,
            rhs.col as isize,
            rhs.row as isize,
            1.0,
            beta,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
