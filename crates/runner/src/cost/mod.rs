//! What an experiment costs, before it is paid.

pub(crate) mod calibration;
pub(crate) mod estimate;
