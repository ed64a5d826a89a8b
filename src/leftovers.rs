//! `cleanup`: what a router that does not run has left, and nothing else.

use anyhow::{Context, bail, ensure};
use viaduct_config::RuntimeConfig;
use viaduct_control::Leftovers;
use viaduct_control::kernel::Kernel;
use viaduct_router::remove_pins;

use crate::commands;
use crate::daemon::runtime as start_runtime;
use crate::locks::{forget, holder, lock};
use crate::options::here;
use crate::out::say;

/// Removes pins, the kernel's path, socket and lock of a router that is not running. All is looked
/// at before anything is touched: an unknown node, another network namespace and a router that runs
/// are errors that change nothing.
pub(crate) fn cleanup(runtime: &RuntimeConfig, node: &str) -> anyhow::Result<()> {
    let pins = runtime.pins(node);
    let settings = runtime.settings(node);
    start_runtime()?.block_on(async {
        let commands = runtime.commands(node);
        let files = [
            runtime.socket(node),
            runtime.lock(node),
            pins.clone(),
            commands.clone(),
        ];
        let known = files.iter().any(|file| file.exists());
        // Held by a router that runs; making it would be a trace of a mistyped name.
        let held = runtime.lock(node).exists().then(|| lock(runtime, node));
        let held = held.transpose()?;
        if let Some(other) = holder() {
            bail!(
                "node {other}'s router is running in this network namespace: nothing was removed; \
                 stop it first"
            );
        }
        let kernel = Kernel::open()?;
        let found = Leftovers::find(&kernel, node, &settings, here()).await?;
        ensure!(
            known || !found.is_empty(),
            "nothing of a node {node} is here: no pins in {}, no files in {}, nothing marked as its own in \
             this network namespace; correct the name, --directory or --bpffs",
            runtime.bpffs.display(),
            runtime.directory.display()
        );
        let held = match held {
            Some(held) => held,
            None => lock(runtime, node)?,
        };
        let links =
            remove_pins(&pins).with_context(|| format!("cannot remove {}", pins.display()))?;
        let entries = found.remove(&kernel).await?;
        commands::remove(&commands)
            .with_context(|| format!("cannot remove {}", commands.display()))?;
        forget(runtime, node);
        drop(held);
        say(&format!("{node}: {}\n", spoken(links, entries)))
    })
}

fn spoken(links: usize, entries: usize) -> String {
    let kernel = if entries > 0 {
        format!(
            "; the kernel's VXLAN device, routes, neighbours ({entries} entries) and firewall table removed"
        )
    } else {
        String::new()
    };
    format!("{links} BPF links removed{kernel}")
}
