//! Compiles an XDP program with clang, for build scripts.
use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Compiles a C file to `OUT_DIR/<object>`.
pub(crate) fn compile(source: &str, object: &str) {
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join(object);
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let status = Command::new(&clang)
        .args([
            "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3",
        ])
        // Debian keeps <asm/types.h> in the architecture's own folder.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(["-c", source, "-o"])
        .arg(&out)
        .status();
    match status {
        Ok(s) if s.success() => {}
        Ok(s) => panic!("{clang} could not compile {source} ({s}); it needs libbpf-dev's headers"),
        Err(e) => panic!("cannot run {clang}: {e}; install clang, or name one in CLANG"),
    }
}
