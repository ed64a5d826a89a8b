//! Asking a running router over its control socket.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::out::say;

/// How long a router may take to answer. A change may have to wait for others, and for the kernel.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(super) struct Ask {
    /// The node, where several routers run on this machine
    #[arg(long)]
    node: Option<String>,
    /// Folder of the control sockets: the configuration's `[runtime] directory`
    #[arg(long, default_value = "/run/viaduct")]
    directory: PathBuf,
    /// Answer for programs
    #[arg(long)]
    json: bool,
}

/// No router is running where one was looked for.
#[derive(Debug)]
pub(super) struct NotRunning(String);

impl fmt::Display for NotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRunning {}

impl Ask {
    /// Whether the answer is for programs.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// [`NotRunning`]; when the router does not answer; with what the router says when it refuses.
    pub(super) fn exchange(&self, request: &str) -> anyhow::Result<Value> {
        let (node, stream) = self.connect()?;
        let line = exchange(stream, request).map_err(|error| {
            let how = match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    format!("it has not answered for {} seconds", PATIENCE.as_secs())
                }
                ErrorKind::UnexpectedEof => "it closed the connection; is it stopping?".to_owned(),
                _ => error.to_string(),
            };
            anyhow::anyhow!("cannot ask the router of node {node}: {how}")
        })?;
        let reply: Value = serde_json::from_str(&line).with_context(|| {
            format!("the router of node {node} gave an answer that is no JSON: is it of another version?")
        })?;
        if let Some(error) = reply.get("error").and_then(Value::as_str) {
            bail!("{error}");
        }
        Ok(reply)
    }

    /// Connects to the node's router, or to the only one that is running.
    fn connect(&self) -> anyhow::Result<(String, UnixStream)> {
        let there = self.nodes()?;
        let Some(node) = &self.node else {
            return self.only(&there);
        };
        ensure!(
            viaduct_config::is_node_name(node),
            "--node: {node:?} is no node name"
        );
        match UnixStream::connect(self.socket(node)) {
            Ok(stream) => Ok((node.clone(), stream)),
            Err(error) => Err(self.unreached(node, &error, &there)),
        }
    }

    /// Several sockets may have been left by routers that are dead.
    fn only(&self, there: &[String]) -> anyhow::Result<(String, UnixStream)> {
        let mut running = Vec::new();
        let mut failed = None;
        for node in there {
            match UnixStream::connect(self.socket(node)) {
                Ok(stream) => running.push((node.clone(), stream)),
                Err(error) => failed = Some((node, error)),
            }
        }
        match (running.len(), failed) {
            (0, None) => Err(self.nobody("it has no control socket").into()),
            (0, Some((node, error))) => Err(self.unreached(node, &error, there)),
            (1, _) => Ok(running.remove(0)),
            _ => {
                let nodes: Vec<_> = running.into_iter().map(|(node, _)| node).collect();
                bail!(
                    "several routers run here; choose one with --node: {}",
                    nodes.join(", ")
                )
            }
        }
    }

    fn socket(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.sock"))
    }

    /// The nodes that have a socket here, in order.
    fn nodes(&self) -> anyhow::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(self.nobody("there is no such folder").into());
            }
            Err(error) => {
                let folder = self.directory.display();
                return Err(error)
                    .with_context(|| format!("cannot look for control sockets in {folder}"));
            }
        };
        let node = |path: &Path| {
            let socket = path.extension().is_some_and(|e| e == "sock");
            let name = path.file_stem()?.to_str()?;
            socket.then(|| name.to_owned())
        };
        let mut nodes: Vec<_> = entries
            .filter_map(|entry| node(&entry.ok()?.path()))
            .collect();
        nodes.sort_unstable();
        Ok(nodes)
    }

    fn nobody(&self, why: &str) -> NotRunning {
        NotRunning(format!(
            "no router is running: looked in {}: {why}; if its configuration has another [runtime] directory, name that with --directory",
            self.directory.display()
        ))
    }

    fn unreached(&self, node: &str, error: &io::Error, there: &[String]) -> anyhow::Error {
        let socket = self.socket(node);
        let socket = socket.display();
        match error.kind() {
            ErrorKind::NotFound if there.is_empty() => {
                self.nobody(&format!("{node}.sock is not there")).into()
            }
            ErrorKind::NotFound => NotRunning(format!(
                "no router is running for node {node}: there is no {socket}; the routers in that folder: {}",
                there.join(", ")
            ))
            .into(),
            ErrorKind::ConnectionRefused => NotRunning(format!(
                "the router of node {node} is not running any more, and left {socket}: start it again with `viaduct run`, \
                 or remove what it left with `viaduct cleanup --node {node}`"
            ))
            .into(),
            ErrorKind::PermissionDenied => {
                anyhow::anyhow!("cannot open {socket}: permission denied; run as root")
            }
            _ => anyhow::anyhow!("cannot ask the router of node {node} at {socket}: {error}"),
        }
    }
}

/// Asks and prints, as JSON or by `text`.
pub(super) fn show(request: &str, ask: &Ask, text: fn(&Value) -> String) -> anyhow::Result<()> {
    let reply = ask.exchange(request)?;
    print(&reply, ask, text)
}

/// Prints an answer.
pub(super) fn print(reply: &Value, ask: &Ask, text: fn(&Value) -> String) -> anyhow::Result<()> {
    if ask.json {
        say(&format!("{reply:#}\n"))
    } else {
        say(&text(reply))
    }
}

/// Asks for a change, and says when it is done.
pub(super) fn change(request: &Value, ask: &Ask) -> anyhow::Result<()> {
    show(&request.to_string(), ask, |reply| {
        match reply["problem"].as_str() {
            None => "done\n".to_owned(),
            Some(problem) => format!("done; but {problem}\n"),
        }
    })
}

fn exchange(mut stream: UnixStream, request: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // A router that refuses a client says why, and does not read what it asks.
    let sent = writeln!(stream, "{request}");
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line);
    if line.ends_with('\n') {
        return Ok(line);
    }
    sent?;
    read?;
    Err(ErrorKind::UnexpectedEof.into())
}
