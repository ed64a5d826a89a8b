//! Searches for messages behind the seal that break what [`viaduct_fuzz::gossip::check_opened`] demands.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viaduct_fuzz::gossip::check_opened(data);
});
