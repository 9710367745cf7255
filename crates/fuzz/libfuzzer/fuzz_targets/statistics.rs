#![no_main]

scalebench_libfuzzer::target!("statistics");
