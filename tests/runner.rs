//! `./dev test`'s runner, with a cargo that only says what cargo would.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Three binaries, of which the second has two failures and the third crashes; documentation's
/// tests, of which one fails.
const SAID: &str = "\
     Running unittests src/lib.rs (target/debug/deps/one-0123)

running 2 tests
test a ... ok
test b ... ignored

test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/two.rs (target/debug/deps/two-0123)

running 3 tests
test fine ... ok
test deep::bad ... FAILED
test worse ... FAILED

failures:

---- deep::bad stdout ----
failures:
    of its own
---- worse stdout ----
it is bad

failures:
    deep::bad
    worse

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

error: test failed, to rerun pass `-p pack --test two`
     Running tests/three.rs (target/debug/deps/three-0123)

running 1 test
error: test failed, to rerun pass `-p pack --test three`

Caused by:
  process didn't exit successfully: `three` (signal: 6, SIGABRT: process abort signal)
   Doc-tests pack

running 1 test
test src/lib.rs - thing (line 3) ... FAILED

failures:

failures:
    src/lib.rs - thing (line 3)

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

error: doctest failed, to rerun pass `-p pack --doc`
error: 3 targets failed:
";

/// Writes a program.
fn program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

/// What the runner says with these arguments and how it ends, when cargo says this and ends so.
fn runner(folder: &Path, arguments: &[&str], said: &str, code: i32) -> (String, Option<i32>) {
    fs::write(folder.join("said"), said).expect("written");
    let cargo = format!("cat {}/said\nexit {code}", folder.display());
    program(&folder.join("cargo"), &cargo);
    let path = std::env::var("PATH").expect("a PATH");
    let Output { status, stdout, .. } =
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/run.py"))
            .args(arguments)
            .env("PATH", format!("{}:{path}", folder.display()))
            .output()
            .expect("python3 runs");
    (String::from_utf8_lossy(&stdout).into_owned(), status.code())
}

fn run(said: &str, code: i32) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().expect("a folder");
    runner(folder.path(), &["once", "--all"], said, code)
}

/// A test binary of two tests, of which one fails in the second round.
#[test]
fn what_is_repeated_is_counted_and_the_output_of_failures_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let name = format!("fake-{}", std::process::id());
    let binary = folder.join("binary");
    let text = format!(
        "[ \"$1\" = --list ] && {{ echo 'good: test'; echo 'bad: test'; exit; }}\n\
         echo 'test good ... ok'\n\
         [ -e {0}/once ] && {{ echo 'test bad ... FAILED'; echo why; exit 101; }}\n\
         touch {0}/once\necho 'test bad ... ok'",
        folder.display()
    );
    program(&binary, &text);
    let artifact = serde_json::json!({
        "reason": "compiler-artifact", "profile": { "test": true }, "executable": binary,
        "manifest_path": folder.join("Cargo.toml"), "package_id": "path+file:///x#pack@0.1.0",
        "target": { "kind": ["test"], "name": name },
    });
    let (said, code) = runner(folder, &["repeat", "2", &name], &artifact.to_string(), 0);
    assert_eq!(code, Some(1), "{said}");
    for wanted in [
        format!("      1       1  {name}::bad\n      2       0  {name}::good\n"),
        format!("./dev test -p pack --test {name} -- --exact bad\n"),
    ] {
        assert!(said.contains(&wanted), "{wanted}: {said}");
    }
    assert!(said.ends_with("\n3 passed, 1 failed\n"), "{said}");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/repeat/{name}-2.log"));
    let log = fs::read_to_string(&kept).expect("its output");
    fs::remove_file(kept).expect("removed");
    assert!(log.contains("why"), "{log}");
}

#[test]
fn failures_of_all_binaries_stand_at_the_end() {
    let (said, code) = run(SAID, 101);
    assert_eq!(code, Some(1), "{said}");
    let (shown, end) = said
        .split_once("Failed, and how to run it again:\n")
        .expect("a list");
    assert!(shown.starts_with(SAID), "{shown}");
    let wanted = "  deep::bad
      ./dev test -p pack --test two -- --exact deep::bad
  worse
      ./dev test -p pack --test two -- --exact worse
  -p pack --test three: some, or all
      ./dev test -p pack --test three
  -p pack --doc: some, or all
      ./dev test -p pack --doc

2 passed, 4 failed
";
    assert_eq!(end, wanted);
}

#[test]
fn what_does_not_build_is_a_failure_and_what_passes_is_none() {
    let (said, code) = run("error: could not compile `pack`\n", 101);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.ends_with("\n0 passed, 1 failed\n"), "{said}");
    let good = SAID
        .split("     Running tests/two.rs")
        .next()
        .expect("the first");
    let (said, code) = run(good, 0);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.ends_with("\n1 passed, 0 failed\n"), "{said}");
}
