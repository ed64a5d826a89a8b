//! The control socket: a line asks, JSON answers. Also SIGHUP, which asks for the same kind of
//! thing: one change at a time.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use viaduct_config::Config;
use viaduct_control::{AgentHandle, StatusHandle};

use crate::desired::{Change, Desired, Kind};
use crate::options::{port_options, route_options};
use crate::plane::SharedRouter;
use crate::report::{self, View};

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_REQUEST: u64 = 64 << 10;

pub(crate) struct Server {
    listener: UnixListener,
    router: SharedRouter,
    agent: StatusHandle,
    desired: Desired,
    handle: AgentHandle,
    hang_up: Signal,
}

impl Server {
    /// Listens where the configuration says. A socket of a dead router is
    /// replaced: the caller holds the lock.
    pub(crate) fn bind(
        config: &Config,
        router: SharedRouter,
        (agent, handle): (StatusHandle, AgentHandle),
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
            desired: Desired::new(config)?,
            handle,
            hang_up: signal(SignalKind::hangup()).context("cannot catch SIGHUP")?,
        })
    }

    pub(crate) async fn serve(&mut self) -> Infallible {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.attend(stream).await,
                    Err(e) => {
                        tracing::warn!("cannot accept on the control socket: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                _ = self.hang_up.recv() => {
                    let change = self.desired.reloaded();
                    match self.carry_out(change).await {
                        Ok(()) => tracing::info!("the configuration was read again"),
                        Err(error) => tracing::error!("the configuration was not read again: {error:#}"),
                    }
                }
            }
        }
    }

    /// Clients are served one by one: an answer takes microseconds, a change milliseconds.
    async fn attend(&mut self, mut stream: UnixStream) {
        let (from, mut to) = stream.split();
        let mut request = String::new();
        let mut from = BufReader::new(from.take(MAX_REQUEST));
        let asked = tokio::time::timeout(PATIENCE, from.read_line(&mut request)).await;
        if !matches!(asked, Ok(Ok(_))) {
            tracing::debug!("a client of the control socket went away");
            return;
        }
        let mut reply = self.answer(request.trim()).await.to_string();
        reply.push('\n');
        let told = tokio::time::timeout(PATIENCE, to.write_all(reply.as_bytes())).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::debug!("a client of the control socket did not wait for its answer");
        }
    }

    async fn answer(&mut self, request: &str) -> Value {
        match request {
            "status" => return report::status(&self.view()),
            "ports" => return report::ports(&self.view()),
            "routes" => return report::routes(&self.view()),
            "drops" => return report::drops(&self.view()),
            _ => {}
        }
        let change = self.requested(request);
        match self.carry_out(change).await {
            Ok(()) => json!({ "done": true }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        }
    }

    fn view(&self) -> View<'_> {
        View {
            config: self.desired.config(),
            router: &self.router,
            agent: self.agent.get(),
        }
    }

    /// A change, asked for as an object: `{"add": "port", "entry": {...}}` or
    /// `{"del": "port", "key": "..."}`; "route" likewise.
    fn requested(&self, request: &str) -> anyhow::Result<Change> {
        let unknown = || format!("unknown request {request:?}");
        let request: Value = serde_json::from_str(request).with_context(unknown)?;
        let kind = |of: &str| match request[of].as_str() {
            Some("port") => Some(Kind::Port),
            Some("route") => Some(Kind::Route),
            _ => None,
        };
        match (kind("add"), kind("del"), request["key"].as_str()) {
            (Some(kind), None, _) => self.desired.with(kind, &request["entry"]),
            (None, Some(kind), Some(key)) => self.desired.without(kind, key),
            _ => anyhow::bail!(unknown()),
        }
    }

    async fn carry_out(&mut self, change: anyhow::Result<Change>) -> anyhow::Result<()> {
        let change = change?;
        let (ports, routes) = (
            port_options(change.config()),
            route_options(change.config()),
        );
        self.handle.reconfigure(ports, routes).await?;
        self.desired.carry_out(change);
        Ok(())
    }
}
