//! Frames and datagrams that nobody has thought of, and what must be true of whatever becomes of them.
//!
//! The demands stand here once. Three things make frames for them: the fuzzer (`./dev fuzz`), the
//! corpus of what it found worth keeping (tests/corpus.rs), and generators of packets of every
//! shape (tests/shapes.rs, tests/messages.rs).
#![forbid(unsafe_code)]

pub mod decode;
#[path = "../../router/tests/fixture/mod.rs"]
pub mod fixture;
pub mod forward;
pub mod gossip;
pub mod hooks;
pub mod sources;
