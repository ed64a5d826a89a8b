//! Searches for announcements that break what [`viaduct_fuzz::sources::check_sources`] demands.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viaduct_fuzz::sources::check_sources(data);
});
