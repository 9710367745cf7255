//! From tensors to slices and back.

use candle_core::{CpuStorage, Device, Result, Shape, Storage, Tensor, bail};
use std::mem::MaybeUninit;

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

/// [`with_slice`] of several tensors.
pub(crate) fn with_slices<R>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> Result<R>) -> Result<R> {
    let tensors: Vec<Tensor> = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<_>>()?;
    let opened: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = Vec::with_capacity(opened.len());
    for ((storage, layout), tensor) in opened.iter().zip(&tensors) {
        let Storage::Cpu(CpuStorage::F32(data)) = &**storage else {
            bail!("expected an f32 tensor on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device());
        };
        slices.push(&data[layout.start_offset()..][..layout.shape().elem_count()]);
    }
    f(&slices)
}

/// A tensor that owns `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// [`with_slice`] of a tensor that may be absent.
pub(crate) fn with_optional<R>(tensor: Option<&Tensor>, f: impl FnOnce(Option<&[f32]>) -> Result<R>) -> Result<R> {
    match tensor {
        Some(tensor) => with_slice(tensor, |data| f(Some(data))),
        None => f(None),
    }
}

/// A buffer that threads are about to write in full: filling it with zeros first would cost a pass over the memory.
pub(crate) struct Unwritten<T> {
    data: Vec<T>,
}

impl<T> Unwritten<T> {
    pub(crate) fn new(len: usize) -> Self {
        Self { data: Vec::with_capacity(len) }
    }

    /// The first `len` elements, which nobody has written.
    pub(crate) fn spare(&mut self, len: usize) -> &mut [MaybeUninit<T>] {
        &mut self.data.spare_capacity_mut()[..len]
    }

    pub(crate) fn shared(&mut self) -> SharedMut<T> {
        SharedMut(self.data.as_mut_ptr())
    }

    /// The buffer, `len` elements of it.
    ///
    /// # Safety
    /// All `len` must have been written, and `len` must be no more than was asked for.
    pub(crate) unsafe fn vec(mut self, len: usize) -> Vec<T> {
        // SAFETY: the caller's promise.
        unsafe { self.data.set_len(len) };
        self.data
    }
}

impl Unwritten<f32> {
    /// The buffer as a tensor.
    ///
    /// # Safety
    /// As [`vec`](Self::vec), for the elements of `shape`.
    pub(crate) unsafe fn tensor(self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        // SAFETY: the caller's promise.
        tensor(unsafe { self.vec(shape.elem_count()) }, shape)
    }
}

/// A raw pointer that threads may share to write disjoint parts of one buffer.
#[derive(Debug)]
pub(crate) struct SharedMut<T>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// The address of element `offset`.
    ///
    /// # Safety
    /// `offset` must lie inside the buffer, and no two threads may write the same element.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller keeps `offset` inside the allocation.
        unsafe { self.0.add(offset) }
    }

    /// Part of the buffer, set to zeros.
    ///
    /// # Safety
    /// As [`part`](Self::part).
    pub(crate) unsafe fn zeroed<'a>(self, offset: usize, len: usize) -> &'a mut [T]
    where
        T: Copy + Default,
    {
        // SAFETY: the caller's promise; the elements are written before they can be read.
        unsafe {
            self.part(offset, len).fill(MaybeUninit::new(T::default()));
            std::slice::from_raw_parts_mut(self.at(offset), len)
        }
    }

    /// Part of the buffer, whether written or not.
    ///
    /// # Safety
    /// As [`at`](Self::at), for `len` elements.
    pub(crate) unsafe fn part<'a>(self, offset: usize, len: usize) -> &'a mut [MaybeUninit<T>] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset).cast(), len) }
    }
}

// SAFETY: users of `at` promise to write disjoint elements, so sharing the pointer cannot race.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}
