//! What an experiment costs, before it is paid.

pub(crate) mod estimate;
pub(crate) mod flops;
