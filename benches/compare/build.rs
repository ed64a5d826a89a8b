//! Compiles the XDP programs of the ceilings and of the reflector.
#[path = "../../router/bpf/compile.rs"]
mod compile;

fn main() {
    compile::compile("bpf/compare.bpf.c", "compare.bpf.o");
}
