#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| toolweir_fuzz::run(toolweir_fuzz::pins::check, data));
