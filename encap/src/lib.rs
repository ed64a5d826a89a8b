//! What the bytes mean: Ethernet, IP, VXLAN, checksums, ECN and flow entropy.
//!
//! Pure functions over byte slices. No I/O, no clock, no logging, so that the
//! data plane, tests, fuzzers and benches all run the same code.
#![forbid(unsafe_code)]

mod addr;
pub mod checksum;
pub mod ecn;
pub mod ethernet;
pub mod flow;
mod fragment;
pub mod icmp;
mod ip;
pub mod layout;
mod nested;
mod options;
mod outer;
mod tunnel;
pub mod vxlan;

pub use addr::{MacAddr, ParseMacError, Vni, VtepMacs};
pub use checksum::{Finish, finish_partial};
pub use fragment::Fragments;
pub use ip::{Fragment, HopLimitExceeded, IpPacket, ParseError, decrement_hop_limit};
pub use nested::{Finished, finish_all};
pub use outer::{Outer, OuterError, outer_sum_is_right};
pub use tunnel::{TooLong, Tunnel, TunnelParams, patch_v4};
