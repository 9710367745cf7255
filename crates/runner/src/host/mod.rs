//! This machine and this process: device, memory, interruptions.

pub(crate) mod data;
pub(crate) mod device;
pub(crate) mod digest;
pub(crate) mod interrupt;
pub(crate) mod machine;
pub(crate) mod memory;
