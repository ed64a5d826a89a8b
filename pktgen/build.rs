//! Compiles the programs of the generator and of the receivers.
#[path = "../router/bpf/compile.rs"]
mod compile;

fn main() {
    compile::compile("bpf/pktgen.bpf.c", "pktgen.bpf.o");
}
