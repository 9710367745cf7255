//! Where networks run.

use candle_core::{Device, Result, bail};
use std::fmt;
use std::str::FromStr;

/// A device by its name: `cpu`, `cuda` or `cuda:K` (GPU number K of those that the driver shows), and `emulated` in a build
/// with that feature: the GPU's kernels on the CPU, slowly.
///
/// ```
/// use scalebench_kernels::{DeviceId, on_gpu};
/// let id: DeviceId = "cpu".parse()?;
/// assert!(!on_gpu(&id.open()?));
/// assert_eq!((id.count()?, id.name()), (1, None));
/// id.reset_peak();
/// assert_eq!(id.peak(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceId {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// The processor, as a GPU.
    Emulated,
}

impl DeviceId {
    /// Opens the device. Errors if this build, or this machine, does not have it.
    ///
    /// Emulation is a property of the calling thread from then on.
    /// Example: [`DeviceId`].
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => {
                let n = crate::gpu::device::count()?;
                if ordinal >= n {
                    bail!("{self}: expected a GPU from 0 to {}, of {n} that the driver shows", n.saturating_sub(1));
                }
                crate::gpu::device::open(ordinal)
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => {
                bail!("{self}: this build runs on the CPU alone; expected a build with `--features cuda` (scripts/build_cuda.sh)")
            }
            #[cfg(feature = "emulator")]
            Self::Emulated => {
                crate::gpu::emulate();
                Ok(Device::Cpu)
            }
            #[cfg(not(feature = "emulator"))]
            Self::Emulated => bail!("{self}: expected a build with `--features emulator`"),
        }
    }

    /// How many devices of this kind there are.
    /// Example: [`DeviceId`].
    pub fn count(self) -> Result<usize> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => crate::gpu::device::count(),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => self.open().map(|_| 0),
            Self::Cpu | Self::Emulated => Ok(1),
        }
    }

    /// What its maker calls a GPU; none for the processor.
    /// Example: [`DeviceId`].
    pub fn name(self) -> Option<String> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => crate::gpu::device::name(ordinal).ok(),
            _ => None,
        }
    }

    /// Most bytes that tensors on a GPU took since [`reset_peak`](Self::reset_peak); none where that is not known.
    /// Example: [`DeviceId`].
    pub fn peak(self) -> Option<u64> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => crate::gpu::device::peak(ordinal).ok(),
            _ => None,
        }
    }

    /// Starts [`peak`](Self::peak) anew.
    /// Example: [`DeviceId`].
    pub fn reset_peak(self) {
        #[cfg(feature = "cuda")]
        if let Self::Cuda(ordinal) = self {
            // A peak that is not known is reported as such.
            let _ = crate::gpu::device::reset_peak(ordinal);
        }
    }
}

/// Whether tensors on `device` go to the GPU's kernels, on this thread.
///
/// Example: [`DeviceId`].
pub fn on_gpu(device: &Device) -> bool {
    #[cfg(feature = "emulator")]
    if crate::gpu::emulating() {
        return true;
    }
    device.is_cuda()
}

impl FromStr for DeviceId {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match (s, s.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            ("emulated", _) => Ok(Self::Emulated),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err("expected cpu, cuda or cuda:K".to_owned()),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Emulated => f.write_str("emulated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_in_pytorch() {
        for (name, device) in [("cpu", DeviceId::Cpu), ("cuda:0", DeviceId::Cuda(0)), ("cuda:3", DeviceId::Cuda(3))] {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceId::Cuda(0)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(wrong.parse::<DeviceId>().is_err(), "{wrong}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(DeviceId::Cuda(0).open().unwrap_err().to_string().contains("--features cuda"));
    }
}
