//! Compiles the BPF programs.
#[path = "bpf/compile.rs"]
mod compile;

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    compile::compile("bpf/hooks.bpf.c", "hooks.bpf.o");
}
