#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| toolweir_fuzz::run(toolweir_fuzz::server_message::check, data));
