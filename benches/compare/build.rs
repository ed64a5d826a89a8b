//! Compiles the programs of the ceilings and of the reflector.
#[path = "../../router/bpf/compile.rs"]
mod compile;

fn main() {
    println!("cargo:rerun-if-changed=bpf/compare.h");
    compile::compile("bpf/xdp.bpf.c", "xdp.bpf.o");
    compile::compile("bpf/tcx.bpf.c", "tcx.bpf.o");
}
