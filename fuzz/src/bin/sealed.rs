//! Searches for datagrams that break what [`viaduct_fuzz::gossip::check_sealed`] demands.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viaduct_fuzz::gossip::check_sealed(data);
});
