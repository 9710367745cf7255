//! The program. What it consists of is the library beside this file, so that other crates' tests can reach its readers.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: scalebench::OrStop = scalebench::OrStop;

fn main() -> ExitCode {
    scalebench::main()
}
