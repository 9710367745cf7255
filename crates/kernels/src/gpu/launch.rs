//! Memory and launches: of a GPU by its driver, or of the emulator.

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail};

/// The source file of a kernel.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "the emulator has all kernels in one place"))]
pub(super) enum Module {
    Gemm,
    Attention,
    Norm,
    Maps,
}

/// What to run: `blocks` × `threads` threads of `kernel`, whose blocks share `shared` bytes beside what it declares.
#[derive(Debug)]
pub(super) struct Launch {
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "the emulator has all kernels in one place"))]
    pub(super) module: Module,
    pub(super) kernel: String,
    pub(super) blocks: usize,
    pub(super) threads: u32,
    pub(super) shared: usize,
}

/// Arguments of a kernel, as its source declares them.
///
/// # Safety
/// `repr(C)`, with the fields of the kernel's own struct.
#[cfg(feature = "cuda")]
pub(super) unsafe trait Args: candle_core::cuda_backend::cudarc::driver::DeviceRepr {}

/// As above.
///
/// # Safety
/// As above.
#[cfg(not(feature = "cuda"))]
pub(super) unsafe trait Args {}

impl Launch {
    /// Runs the kernel, or queues it: results are there for what is queued after it.
    ///
    /// # Safety
    /// The arguments' addresses must be those of tensors or outputs on `device` that reach as far as the kernel goes.
    pub(super) unsafe fn run<A: Args>(self, device: &Device, args: &A) -> Result<()> {
        if self.blocks == 0 {
            return Ok(());
        }
        match device {
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Device::Cuda(device) => unsafe { super::driver::launch(&self, device, args) },
            #[cfg(feature = "emulator")]
            // SAFETY: as above.
            Device::Cpu => unsafe { super::emulator::launch(&self, args) },
            _ => bail!("{}: no kernel for {device:?}", self.kernel),
        }
    }
}

/// The address of a tensor's first element.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let offset = (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64;
    Ok(start(&storage)? + offset)
}

fn start(storage: &Storage) -> Result<u64> {
    match storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => super::driver::address(storage),
        Storage::Cpu(CpuStorage::F32(data)) => Ok(data.as_ptr() as u64),
        Storage::Cpu(CpuStorage::F16(data)) => Ok(data.as_ptr() as u64),
        Storage::Cpu(CpuStorage::BF16(data)) => Ok(data.as_ptr() as u64),
        _ => bail!("expected f32, f16 or bf16, found {:?}", storage.dtype()),
    }
}

/// Memory that a kernel writes in full.
#[derive(Debug)]
pub(super) struct Output {
    storage: Storage,
    shape: Shape,
}

impl Output {
    pub(super) fn new(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let storage = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Storage::Cuda(super::driver::allocate(device, &shape, dtype)?),
            // What a kernel forgets shows.
            _ => Storage::Cpu(match dtype {
                DType::F32 => CpuStorage::F32(vec![f32::NAN; shape.elem_count()]),
                DType::F16 => CpuStorage::F16(vec![half::f16::NAN; shape.elem_count()]),
                DType::BF16 => CpuStorage::BF16(vec![half::bf16::NAN; shape.elem_count()]),
                _ => bail!("expected f32, f16 or bf16, found {dtype:?}"),
            }),
        };
        Ok(Self { storage, shape })
    }

    /// Where the kernel writes.
    pub(super) fn address(&mut self) -> Result<u64> {
        match &mut self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => Ok(data.as_mut_ptr() as u64),
            Storage::Cpu(CpuStorage::F16(data)) => Ok(data.as_mut_ptr() as u64),
            Storage::Cpu(CpuStorage::BF16(data)) => Ok(data.as_mut_ptr() as u64),
            storage => start(storage),
        }
    }

    pub(super) fn tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}
