//! NVIDIA's driver, through candle's device.

use super::launch::{Args, Launch, Module};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg, sys};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, bail};

/// Shared memory that every kernel may have; more is asked for.
const SHARED: usize = 48 << 10;

impl Module {
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Gemm => ("scalebench_gemm", include_str!(concat!(env!("OUT_DIR"), "/gemm.ptx"))),
            Self::Attention => ("scalebench_attention", include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"))),
            Self::Norm => ("scalebench_norm", include_str!(concat!(env!("OUT_DIR"), "/norm.ptx"))),
            Self::Maps => ("scalebench_maps", include_str!(concat!(env!("OUT_DIR"), "/maps.ptx"))),
        }
    }
}

/// Opens GPU `ordinal`, with a stream of its own.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: everything goes through this one stream, in order, whichever thread asks.
    unsafe { device.disable_event_tracking() };
    keep_memory(ordinal)?;
    Ok(Device::Cuda(device))
}

/// Lets the driver keep what was freed: by default it gives it back whenever the host waits for the GPU, and asks for it again.
fn keep_memory(ordinal: usize) -> Result<()> {
    let (mut pool, mut threshold) = (std::ptr::null_mut(), u64::MAX);
    // SAFETY: the pointers are to values of the kinds that the driver expects, and a context exists.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, ordinal as i32).result().w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result().w()
    }
}

/// Most bytes that the pool held since [`reset_peak`].
pub(super) fn peak(ordinal: usize) -> Result<u64> {
    let (mut pool, mut bytes) = (std::ptr::null_mut(), 0u64);
    // SAFETY: as above.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, ordinal as i32).result().w()?;
        sys::cuMemPoolGetAttribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut bytes).cast()).result().w()?;
    }
    Ok(bytes)
}

/// Starts [`peak`] anew.
pub(super) fn reset_peak(ordinal: usize) -> Result<()> {
    let (mut pool, mut bytes) = (std::ptr::null_mut(), 0u64);
    // SAFETY: as above; 0 is the one value that may be set.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, ordinal as i32).result().w()?;
        sys::cuMemPoolSetAttribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut bytes).cast()).result().w()
    }
}

/// Number of GPUs.
pub(super) fn count() -> Result<usize> {
    Ok(usize::try_from(candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().w()?).unwrap_or(0))
}

/// What the driver calls GPU `ordinal`.
pub(super) fn name(ordinal: usize) -> Result<String> {
    candle_core::cuda_backend::cudarc::driver::CudaContext::new(ordinal).w()?.name().w()
}

pub(super) fn address(storage: &CudaStorage) -> Result<u64> {
    fn of<T: CudaDType>(storage: &CudaStorage) -> Result<u64> {
        let stream = storage.device().cuda_stream();
        Ok(storage.as_cuda_slice::<T>()?.device_ptr(&stream).0)
    }
    match storage.dtype() {
        DType::F32 => of::<f32>(storage),
        DType::F16 => of::<half::f16>(storage),
        DType::BF16 => of::<half::bf16>(storage),
        dtype => bail!("expected f32, f16 or bf16, found {dtype:?}"),
    }
}

pub(super) fn allocate(device: &CudaDevice, shape: &Shape, dtype: DType) -> Result<CudaStorage> {
    // SAFETY: the kernels write all of it.
    unsafe { device.alloc_uninit(shape, dtype) }
}

/// # Safety
/// As [`Launch::run`].
pub(super) unsafe fn launch<A: Args>(launch: &Launch, device: &CudaDevice, args: &A) -> Result<()> {
    let (module, ptx) = launch.module.source();
    let function = device.get_or_load_custom_func(&launch.kernel, module, ptx)?;
    if launch.shared > SHARED {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, launch.shared as i32).w()?;
    }
    let Ok(blocks) = u32::try_from(launch.blocks) else { bail!("{}: {} blocks", launch.kernel, launch.blocks) };
    let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (launch.threads, 1, 1), shared_mem_bytes: launch.shared as u32 };
    let mut builder = function.builder();
    builder.arg(args);
    // SAFETY: the caller's promise.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
