//! Compiles the generator's and the receiver's XDP programs.
#[path = "../router/bpf/compile.rs"]
mod compile;

fn main() {
    compile::compile("bpf/pktgen.bpf.c", "pktgen.bpf.o");
}
