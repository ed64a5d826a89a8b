//! TCP's throughput, by iperf3.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::host::{Host, run};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server, until this is dropped.
pub(crate) struct Server(Child);

/// What a client reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Transfer {
    /// Bytes that the receiving end has read.
    pub(crate) bytes: f64,
    /// Of these, by second.
    pub(crate) bytes_per_s: f64,
    pub(crate) sent_again: f64,
}

impl Server {
    pub(crate) fn start(host: &Host, log: &Path) -> anyhow::Result<Self> {
        let child = host
            .command("iperf3")
            .args(["--server", "--forceflush", "--logfile"])
            .arg(log)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run iperf3: is it installed? (./dev setup)")?;
        let mut server = Self(child);
        let until = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(log).unwrap_or_default();
            if said.contains("listening") {
                return Ok(server);
            }
            let ended = server.0.try_wait()?.is_some();
            ensure!(
                !ended && Instant::now() < until,
                "iperf3's server does not start: {}",
                said.trim()
            );
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends as much as it can for some seconds.
pub(crate) fn send(
    host: &Host,
    to: Ipv4Addr,
    flows: u32,
    seconds: u64,
) -> anyhow::Result<Transfer> {
    // A client whose server does not answer would wait for ever.
    let limit = seconds + PATIENCE.as_secs();
    let text = run(host.command("timeout").args([
        &limit.to_string(),
        "iperf3",
        "--json",
        "--connect-timeout",
        "5000",
        "--client",
        &to.to_string(),
        "--time",
        &seconds.to_string(),
        "--parallel",
        &flows.to_string(),
    ]))?;
    parse(&text)
}

fn parse(text: &str) -> anyhow::Result<Transfer> {
    let all: Value = serde_json::from_str(text).context("iperf3's report")?;
    if let Some(error) = all["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let (received, sent) = (&all["end"]["sum_received"], &all["end"]["sum_sent"]);
    let number = |value: &Value, what: &str| {
        (value.as_f64()).with_context(|| format!("iperf3 does not report {what}"))
    };
    Ok(Transfer {
        bytes: number(&received["bytes"], "received bytes")?,
        bytes_per_s: number(&received["bits_per_second"], "a rate")? / 8.0,
        sent_again: number(&sent["retransmits"], "segments sent again")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let text = r#"{"start": {}, "end": {"streams": [],
            "sum_sent": {"bytes": 1250000000, "bits_per_second": 9.99e9, "retransmits": 7},
            "sum_received": {"bytes": 1249000000, "bits_per_second": 8e9}}}"#;
        let expected = Transfer {
            bytes: 1.249e9,
            bytes_per_s: 1e9,
            sent_again: 7.0,
        };
        assert_eq!(parse(text).expect("a report"), expected);
    }

    #[test]
    fn a_failure_is_said() {
        let text = r#"{"start": {}, "end": {}, "error": "unable to connect"}"#;
        let error = parse(text).expect_err("an error").to_string();
        assert!(error.contains("unable to connect"), "{error}");
        let error = parse(r#"{"end": {}}"#).expect_err("an error").to_string();
        assert!(error.contains("does not report received bytes"), "{error}");
        assert!(parse("").is_err());
    }
}
