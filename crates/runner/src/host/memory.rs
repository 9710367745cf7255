//! The allocator's habits and what the process has used.

use scalebench_generation::DeviceId;

use crate::host::device;

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
