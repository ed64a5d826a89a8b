//! Searches for frames that break what [`viaduct_fuzz::forward::check`] demands, guided by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viaduct_fuzz::forward::check_bytes(data);
});
