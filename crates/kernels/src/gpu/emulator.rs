//! The kernels compiled for the CPU.

use super::launch::{Args, Launch};
use candle_core::{Result, bail};
use rayon::prelude::*;
use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};

thread_local! {
    /// Where `SCALEBENCH_TEST_DEVICE` is `emulated`, all threads emulate: so the golden tests of all crates check the GPU's kernels.
    static MODE: Cell<Option<Mode>> = Cell::new(match std::env::var("SCALEBENCH_TEST_DEVICE").as_deref() {
        Ok("emulated") => Some(Mode::Forward),
        _ => None,
    });
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    /// The last block, warp and lane first, and copies at once.
    Reversed,
}

/// Whether tensors on the CPU are taken for tensors on a GPU, on this thread.
pub(crate) fn active() -> bool {
    MODE.get().is_some()
}

/// Emulates on this thread from now on.
pub(crate) fn emulate() {
    MODE.set(Some(Mode::Forward));
}

/// Runs `f` under emulation, on this thread, in either order of the kernels' threads.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use scalebench_kernels::{emulated, silu};
/// let x = Tensor::new(&[1f32, -2.0], &Device::Cpu)?;
/// let apart = (emulated(true, || silu(&x))? - silu(&x)?)?.abs()?.max(0)?.to_scalar::<f32>()?;
/// assert!(apart < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn emulated<R>(reversed: bool, f: impl FnOnce() -> R) -> R {
    let before = MODE.replace(Some(if reversed { Mode::Reversed } else { Mode::Forward }));
    let result = f();
    MODE.set(before);
    result
}

/// Runs `f` on the CPU's own kernels.
pub(super) fn suspended<R>(f: impl FnOnce() -> R) -> R {
    let before = MODE.replace(None);
    let result = f();
    MODE.set(before);
    result
}

unsafe extern "C" {
    fn scalebench_emulate(
        name: *const c_char,
        threads: u32,
        shared: usize,
        first: u32,
        end: u32,
        reversed: c_int,
        args: *const c_void,
        args_bytes: usize,
    ) -> c_int;
}

/// # Safety
/// As [`Launch::run`].
pub(super) unsafe fn launch<A: Args>(launch: &Launch, args: &A) -> Result<()> {
    let name = CString::new(launch.kernel.as_str()).expect("names have no zeros");
    let reversed = MODE.get() == Some(Mode::Reversed);
    // A reference is not shared between threads: its address is.
    let args = std::ptr::from_ref(args) as usize;
    let blocks = u32::try_from(launch.blocks).expect("less than 2³² blocks");
    let share = blocks.div_ceil(rayon::current_num_threads() as u32).max(1);
    let failed = (0..blocks.div_ceil(share))
        .into_par_iter()
        .map(|part| {
            let (first, end) = (part * share, blocks.min((part + 1) * share));
            // SAFETY: the caller's promise; the kernel reads `args` as `A`, whose size is checked.
            unsafe {
                let args = args as *const c_void;
                scalebench_emulate(name.as_ptr(), launch.threads, launch.shared, first, end, reversed.into(), args, size_of::<A>())
            }
        })
        .max();
    match failed {
        None | Some(0) => Ok(()),
        Some(1) => bail!("no kernel {}", launch.kernel),
        Some(2) => bail!("{}: {} threads are not what the kernel has", launch.kernel, launch.threads),
        Some(_) => bail!("{}: arguments of {} bytes are not what the kernel has", launch.kernel, size_of::<A>()),
    }
}
