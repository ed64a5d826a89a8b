//! The pins of links in a folder of a BPF filesystem, by which a successor finds them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};

use crate::bpf::XdpMode;

/// The name of the pin of a link to a device; `mode`: none where the hook is in tc.
pub(crate) fn pin_name(ifindex: u32, mode: Option<XdpMode>) -> String {
    let kind = match mode {
        Some(XdpMode::Native) => "native",
        Some(XdpMode::Generic) => "generic",
        None => "tc",
    };
    format!("link-{kind}-{ifindex}")
}

/// Every kind of link.
pub(crate) const KINDS: [Option<XdpMode>; 3] =
    [Some(XdpMode::Native), Some(XdpMode::Generic), None];

/// The pins of links in a folder; none when there is no folder.
pub(crate) fn pins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut pins = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("link-") {
            pins.push(entry.path());
        }
    }
    Ok(pins)
}

/// Numbers of the programs in the links that are pinned in `folder`.
pub fn pinned_programs(folder: &Path) -> Vec<u32> {
    let pins = pins(folder).unwrap_or_default();
    let links = pins.iter().filter_map(|pin| PinnedLink::from_pin(pin).ok());
    links
        .filter_map(|link| FdLink::from(link).info().ok())
        .map(|info| info.program_id())
        .collect()
}

/// Removes the pins that a dead router left in `folder`: its links detach.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_pins(folder: &Path) -> io::Result<usize> {
    let pins = pins(folder)?;
    for pin in &pins {
        fs::remove_file(pin)?;
    }
    remove_folders(folder);
    Ok(pins.len())
}

/// Removes a folder of pins, and the one it is in, if nobody else uses them.
pub(crate) fn remove_folders(folder: &Path) {
    let _ = fs::remove_dir(folder);
    if let Some(parent) = folder.parent() {
        let _ = fs::remove_dir(parent);
    }
}
