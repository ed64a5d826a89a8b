//! Compiles the XDP programs.
#[path = "bpf/compile.rs"]
mod compile;

fn main() {
    compile::compile("bpf/pinhole.bpf.c", "pinhole.bpf.o");
}
