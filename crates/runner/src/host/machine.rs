//! The machine that a run was begun on, for the record: pixels may differ between machines in their last bits, and
//! seconds certainly do.

use std::fmt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::host::device;

/// What of a machine explains a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Operating system and architecture.
    pub(crate) system: String,
    /// Model name of the processor, where the system tells.
    pub(crate) processor: Option<String>,
    /// The GPU that networks run on, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu: Option<String>,
    /// Threads that the program uses.
    pub(crate) threads: usize,
    pub(crate) memory_bytes: Option<u64>,
}

impl Machine {
    /// The machine that this process runs on.
    pub(crate) fn here() -> Machine {
        let value = |file: &str, key: &str| -> Option<String> {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib = value("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Machine {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: value("/proc/cpuinfo", "model name"),
            gpu: device::id().name(),
            threads: rayon::current_num_threads(),
            memory_bytes: kib.map(|kib| kib * 1024),
        }
    }
}

/// What this machine calls itself.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "this machine".to_owned())
}

/// Digest of this program's file.
pub(crate) fn build() -> Result<String> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let bytes = std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    Ok(blake3::hash(&bytes).to_hex()[..16].to_owned())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gpu) = &self.gpu {
            write!(f, "{gpu}, ")?;
        }
        let threads = if self.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", self.threads) };
        write!(f, "{}, {threads}", self.processor.as_deref().unwrap_or("unknown processor"))?;
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {:.0} GiB of memory", bytes as f64 / f64::from(1 << 30))?;
        }
        write!(f, ", {}", self.system)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_by_what_is_known_of_it() {
        let mut machine = Machine { system: "linux x86_64".into(), processor: None, gpu: None, threads: 1, memory_bytes: None };
        assert_eq!(machine.to_string(), "unknown processor, 1 thread, linux x86_64");
        machine = Machine { processor: Some("Abacus 9".into()), threads: 4, memory_bytes: Some(24 << 30), ..machine };
        assert_eq!(machine.to_string(), "Abacus 9, 4 threads, 24 GiB of memory, linux x86_64");
        machine.gpu = Some("Soroban 100".into());
        assert_eq!(machine.to_string(), "Soroban 100, Abacus 9, 4 threads, 24 GiB of memory, linux x86_64");
        assert!(Machine::here().threads > 0);
    }
}
