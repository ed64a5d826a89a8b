//! Asking a running router over its control socket.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

#[derive(clap::Args)]
pub(crate) struct Ask {
    /// The node, where several routers run on this machine
    #[arg(long)]
    node: Option<String>,
    /// Folder of the control sockets
    #[arg(long, default_value = "/run/viaduct")]
    directory: PathBuf,
    /// Answer for programs
    #[arg(long)]
    json: bool,
}

impl Ask {
    fn socket(&self) -> anyhow::Result<PathBuf> {
        if let Some(node) = &self.node {
            return Ok(self.directory.join(format!("{node}.sock")));
        }
        let entries = fs::read_dir(&self.directory).with_context(|| {
            format!(
                "no router runs here: cannot read {}",
                self.directory.display()
            )
        })?;
        let paths = entries.filter_map(|e| Some(e.ok()?.path()));
        let mut sockets: Vec<_> = paths
            .filter(|p| p.extension().is_some_and(|e| e == "sock"))
            .collect();
        match (sockets.pop(), sockets.is_empty()) {
            (Some(socket), true) => Ok(socket),
            (Some(_), false) => bail!("several routers run here; choose one with --node"),
            (None, _) => bail!(
                "no router runs here: no socket in {}",
                self.directory.display()
            ),
        }
    }
}

/// Asks and prints, as JSON or by `text`.
pub(crate) fn show(request: &str, ask: &Ask, text: fn(&Value) -> String) -> anyhow::Result<()> {
    let reply = exchange(request, ask)?;
    if ask.json {
        println!("{reply:#}");
    } else {
        print!("{}", text(&reply));
    }
    Ok(())
}

/// Asks for a change, and says when it is done.
pub(crate) fn change(request: &Value, ask: &Ask) -> anyhow::Result<()> {
    show(&request.to_string(), ask, |_| "done\n".to_owned())
}

fn exchange(request: &str, ask: &Ask) -> anyhow::Result<Value> {
    let socket = ask.socket()?;
    let doing = || {
        format!(
            "cannot ask the router at {} (is it running?)",
            socket.display()
        )
    };
    let mut stream = UnixStream::connect(&socket).with_context(doing)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(15)))
        .with_context(doing)?;
    writeln!(stream, "{request}").with_context(doing)?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(doing)?;
    let reply: Value = serde_json::from_str(&line).with_context(doing)?;
    if let Some(error) = reply.get("error").and_then(Value::as_str) {
        bail!("{error}");
    }
    Ok(reply)
}
