//! The allocator's habits, what the process has used, and what happens when there is no more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use scalebench_generation::DeviceId;

use crate::host::device;

/// The system's allocator, which ends the process with one line and status 2 where memory is not to be had. Rust's own way is to abort.
///
/// Example: [this crate](crate).
#[derive(Debug)]
pub struct OrStop;

/// Exit status where memory is not to be had: that of every failure.
const FAILED: i32 = 2;

static TELL: OnceLock<fn(usize)> = OnceLock::new();

/// Has `tell` say how many bytes were not to be had, before the process ends.
pub(crate) fn on_exhaustion(tell: fn(usize)) {
    TELL.get_or_init(|| tell);
}

fn stop(bytes: usize) -> ! {
    static STOPPING: AtomicBool = AtomicBool::new(false);
    // Telling takes a little memory, too; who finds none for that ends in silence.
    if !STOPPING.swap(true, Ordering::Relaxed)
        && let Some(tell) = TELL.get()
    {
        tell(bytes);
    }
    std::process::exit(FAILED)
}

fn or_stop(found: *mut u8, bytes: usize) -> *mut u8 {
    if found.is_null() { stop(bytes) } else { found }
}

// SAFETY: every call is the system allocator's, with the caller's own promises.
unsafe impl GlobalAlloc for OrStop {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        or_stop(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        or_stop(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, from: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        or_stop(unsafe { System.realloc(from, layout, size) }, size)
    }

    unsafe fn dealloc(&self, from: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(from, layout) }
    }
}

/// Asks the C library to keep freed memory. A network frees and allocates the same hundreds of megabytes in every
/// step; given back to the system each time, their pages have to be zeroed and mapped anew, which took a tenth of a
/// U-Net step in `f32` and a fifth in `bf16`.
pub(crate) fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only sets parameters; no thread that could allocate meanwhile has been started.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_TOP_PAD, 256 << 20);
        // Heaps of threads give back what is freed at their ends, whatever is asked for.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is kept, so that the next high-water mark is that of the next task alone.
pub(crate) fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: returns free pages to the system and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Starts a new high-water mark; where the system has none, the peak is that of the process so far.
pub(crate) fn reset_peak() {
    device::id().reset_peak();
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Since the last reset, the most bytes that tensors took on the GPU, if networks run on one. Else the largest resident size, without
/// what is there for files' sake: how much of the program's own code happens to be resident says nothing about the task. None
/// where the driver or the system does not tell.
pub(crate) fn peak() -> Option<u64> {
    if let DeviceId::Cuda(_) = device::id() {
        return device::id().peak();
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |key: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    let peak = bytes("VmHWM:")?;
    Some(peak.saturating_sub(bytes("RssFile:").unwrap_or(0)))
}
