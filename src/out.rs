//! What commands write. A reader that closes its pipe has seen what it wanted: that is no failure,
//! and changes no exit code. Nothing else in this program writes to the standard output or error.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Writes to the standard output.
///
/// # Errors
/// When it cannot be written for another reason than a closed pipe, such as a full disk.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to the standard output")
        }
        _ => Ok(()),
    }
}

/// Writes a line to the standard error, if that is possible.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
