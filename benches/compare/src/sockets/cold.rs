//! The first TCP transfer between two pods, by the script that `./dev bench cold` uses.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::{Context, bail};

use super::measure::{COLD, LOST, Reading, SENT_AGAIN};
use crate::host::{Host, run};

const SCRIPT: &str = include_str!("../../../../tests/common/transfer.py");

/// Milliseconds from the first byte to the answer.
pub(crate) fn transfer(from: &Host, to: &Host, address: Ipv4Addr) -> anyhow::Result<Reading> {
    let address = address.to_string();
    let mut receiver = to
        .command("timeout")
        .args(["60", "python3", "-c", SCRIPT, "receive", &address])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run python3")?;
    let mut said = BufReader::new(receiver.stdout.take().context("no output")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    let sent = if line.trim() == "ready" {
        run(from.command("timeout").args([
            "60",
            "python3",
            "-c",
            SCRIPT,
            "send",
            &address,
            &COLD.to_string(),
        ]))
    } else {
        Err(anyhow::anyhow!("the receiver does not start"))
    };
    if sent.is_err() {
        let _ = receiver.kill();
    }
    let mut twice = String::new();
    said.read_to_string(&mut twice)?;
    receiver.wait()?;
    parse(&sent?, &twice)
}

fn parse(sent: &str, twice: &str) -> anyhow::Result<Reading> {
    let numbers: Vec<f64> = (sent.split_whitespace().chain(twice.split_whitespace()))
        .map_while(|word| word.parse().ok())
        .collect();
    let &[took, again, twice] = &numbers[..] else {
        bail!("the transfer's programs said {sent:?} and {twice:?}");
    };
    Ok(Reading {
        value: took,
        beside: vec![
            (SENT_AGAIN.name, again),
            (LOST.name, (again - twice).max(0.0)),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_again_and_came_twice_was_not_lost() {
        let read = |sent, twice| parse(sent, twice).expect("numbers");
        let expected = |value, again, lost| Reading {
            value,
            beside: vec![(SENT_AGAIN.name, again), (LOST.name, lost)],
        };
        assert_eq!(read("1.25 0", "0\n"), expected(1.25, 0.0, 0.0));
        assert_eq!(read("7.5 3", "1"), expected(7.5, 3.0, 2.0));
        // A segment that the network doubles comes twice, too.
        assert_eq!(read("7.5 0", "1"), expected(7.5, 0.0, 0.0));
        for (sent, twice) in [("", "0"), ("1.0", "0"), ("1.0 x", "0"), ("1.0 0 0", "0")] {
            assert!(parse(sent, twice).is_err(), "{sent:?} {twice:?}");
        }
    }
}
