//! The device that this process runs its networks on: one, opened by the command that needs it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use scalebench_generation::{Device, DeviceId};

static OPENED: OnceLock<(DeviceId, Device)> = OnceLock::new();

/// Opens the device for the rest of the process.
pub(crate) fn open(id: DeviceId) -> Result<()> {
    let device = id.open().context("--device")?;
    ensure!(OPENED.set((id, device)).is_ok(), "--device: a process has one");
    Ok(())
}

/// The opened device, or else the processor.
pub(crate) fn current() -> Device {
    OPENED.get().map_or(Device::Cpu, |(_, device)| device.clone())
}

/// What was opened.
pub(crate) fn id() -> DeviceId {
    OPENED.get().map_or(DeviceId::Cpu, |(id, _)| *id)
}

/// `--device` of a sweep: one, or all of a kind, with a process for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Devices {
    One(DeviceId),
    /// The first of them.
    All(DeviceId),
}

impl Default for Devices {
    fn default() -> Self {
        Self::One(DeviceId::Cpu)
    }
}

impl Devices {
    /// The one that scores and reports are made on.
    pub(crate) fn first(self) -> DeviceId {
        match self {
            Self::One(id) | Self::All(id) => id,
        }
    }

    /// All of them.
    pub(crate) fn each(self) -> Result<Vec<DeviceId>> {
        let all = match self {
            Self::All(DeviceId::Cuda(_)) => (0..DeviceId::Cuda(0).count().context("--device")?).map(DeviceId::Cuda).collect(),
            // The emulator is one machine's cores: two processes try what several GPUs would do.
            Self::All(id) => vec![id; 2],
            Self::One(id) => vec![id],
        };
        ensure!(!all.is_empty(), "--device {self}: the driver shows no GPU");
        Ok(all)
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "cuda:all" => Ok(Self::All(DeviceId::Cuda(0))),
            "emulated:all" => Ok(Self::All(DeviceId::Emulated)),
            _ => s.parse().map(Self::One).map_err(|_| "expected cpu, cuda, cuda:K or cuda:all".to_owned()),
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(id) => id.fmt(f),
            Self::All(DeviceId::Cuda(_)) => f.write_str("cuda:all"),
            Self::All(id) => write!(f, "{id}:all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_one_or_all() {
        for name in ["cpu", "cuda:0", "cuda:2", "cuda:all"] {
            assert_eq!(name.parse::<Devices>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(Devices::One(DeviceId::Cuda(0))));
        assert!("all".parse::<Devices>().unwrap_err().contains("cuda:all"));
    }
}
