//! What counts depend on beside the code, as it is here.

use std::process::Command;

use crate::baseline::Build;

/// The names of those features for which a test holds.
macro_rules! features {
    ($test:ident: $($name:tt)*) => {
        [$(($name, $test!($name))),*]
    };
}

macro_rules! compiled {
    ($name:tt) => {
        cfg!(target_feature = $name)
    };
}

fn listed(features: &[(&str, bool)]) -> String {
    let names = features
        .iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| *name);
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" ")
    }
}

fn compiled_for() -> String {
    listed(&features!(compiled: "sse4.2" "aes" "popcnt" "avx" "avx2" "bmi1" "bmi2" "fma" "avx512f"))
}

/// What the processor has, for the process that asks.
#[cfg(target_arch = "x86_64")]
pub(crate) fn processor() -> String {
    use std::arch::is_x86_feature_detected as has;
    listed(
        &features!(has: "ssse3" "sse4.2" "pclmulqdq" "avx" "avx2" "bmi1" "bmi2" "avx512f" "avx512vl"),
    )
}

/// What the processor has is not asked here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn processor() -> String {
    std::env::consts::ARCH.to_owned()
}

fn said(program: &str, words: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(words).output();
    let output = output
        .map_err(|e| format!("cannot run {program}: {e}; ./dev setup installs what is needed"))?;
    if !output.status.success() {
        return Err(format!("{program} {}: {}", words.join(" "), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Asks the tools. The processor is asked below valgrind, which shows another one.
pub(crate) fn here() -> Result<Build, String> {
    let rustc = said("rustc", &["-vV"])?;
    let line = |start: &str| rustc.lines().find_map(|l| l.strip_prefix(start));
    let me = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let me = me.to_string_lossy();
    Ok(Build {
        rustc: line("rustc ").unwrap_or("unknown").to_owned(),
        target: line("host: ").unwrap_or("unknown").to_owned(),
        compiled_for: compiled_for(),
        processor: said("valgrind", &["--tool=none", "--quiet", &me, "--processor"])?,
        libc: said("getconf", &["GNU_LIBC_VERSION"])?,
        valgrind: said("valgrind", &["--version"])?,
    })
}
