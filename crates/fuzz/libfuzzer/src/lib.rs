//! One line for each target of cargo-fuzz.

pub use libfuzzer_sys::fuzz_target;

/// Runs a target on bytes.
pub fn run(name: &str, bytes: &[u8]) {
    let target = scalebench_fuzz::TARGETS.into_iter().find(|target| target.name == name).expect("a target's name");
    // What a reader says of bad input is no finding.
    drop((target.run)(bytes));
}

/// The program of one target.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::fuzz_target!(|bytes: &[u8]| $crate::run($name, bytes));
    };
}
