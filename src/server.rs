//! The control socket: a line asks, JSON answers.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use viaduct_config::Config;
use viaduct_control::StatusHandle;

use crate::plane::SharedRouter;
use crate::report;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_REQUEST: u64 = 256;

pub(crate) struct Server {
    listener: UnixListener,
    pub(crate) router: SharedRouter,
    pub(crate) agent: StatusHandle,
    pub(crate) config: Config,
    pub(crate) address: Ipv4Addr,
}

impl Server {
    /// Listens where the configuration says. A socket of a dead router is
    /// replaced: the caller holds the lock.
    pub(crate) fn bind(
        config: &Config,
        router: SharedRouter,
        agent: StatusHandle,
        address: Ipv4Addr,
    ) -> anyhow::Result<Self> {
        let path = config.runtime.socket(&config.node.name);
        let doing = || format!("cannot listen on {}", path.display());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(doing),
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(doing)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).with_context(doing)?;
        Ok(Self {
            listener,
            router,
            agent,
            config: config.clone(),
            address,
        })
    }

    pub(crate) async fn serve(&self) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // Served one by one: an answer takes microseconds.
                    let served = tokio::time::timeout(PATIENCE, self.answer(stream)).await;
                    if !matches!(served, Ok(Ok(()))) {
                        tracing::debug!("a client of the control socket went away");
                    }
                }
                Err(e) => {
                    tracing::warn!("cannot accept on the control socket: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let (from, mut to) = stream.split();
        let mut request = String::new();
        BufReader::new(from.take(MAX_REQUEST))
            .read_line(&mut request)
            .await?;
        let reply = match request.trim() {
            "status" => report::status(self),
            "ports" => report::ports(self),
            "routes" => report::routes(self),
            "drops" => report::drops(self),
            other => serde_json::json!({ "error": format!("unknown request {other:?}") }),
        };
        to.write_all(reply.to_string().as_bytes()).await?;
        to.write_all(b"\n").await
    }
}
