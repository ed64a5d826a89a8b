//! XDP links: attached, pinned, taken over from a predecessor, given up.
//!
//! A link's pin is named after its mode and device, so that a successor finds it and replaces the
//! program in it in one step: the device is never without a program in between.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, XdpMode as AyaMode};

use crate::bpf::{Pinholes, XdpMode, chain};
use crate::error::RouterError;

/// A link, held by its descriptor and by its pin.
pub(crate) struct Attachment {
    _link: FdLink,
    pin: PathBuf,
    /// It was there before this process.
    inherited: bool,
}

enum AttachError {
    Busy,
    Other(String),
}

impl AttachError {
    fn other(error: &dyn std::error::Error) -> Self {
        Self::Other(chain(error))
    }
}

fn pin_name(ifindex: u32, mode: XdpMode) -> String {
    let mode = match mode {
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    };
    format!("link-{mode}-{ifindex}")
}

impl Pinholes {
    /// Attaches to a device and pins the link, or takes over the link that a predecessor pinned.
    /// A link that has just been detached holds its device for a moment: busy devices are tried
    /// again until `patience` is over.
    pub(crate) fn attach(
        &mut self,
        program: &str,
        name: &str,
        ifindex: u32,
        wanted: Option<XdpMode>,
        patience: Duration,
    ) -> Result<XdpMode, RouterError> {
        let modes: &[XdpMode] = match wanted {
            None => &[XdpMode::Native, XdpMode::Generic],
            Some(XdpMode::Native) => &[XdpMode::Native],
            Some(XdpMode::Generic) => &[XdpMode::Generic],
        };
        for &mode in modes {
            if let Some(link) = self.take_over(program, ifindex, mode) {
                self.links.insert(ifindex, link);
                return Ok(mode);
            }
        }
        // A pin of another mode, or of a device that had this number before.
        for mode in [XdpMode::Native, XdpMode::Generic] {
            let _ = fs::remove_file(self.pins.join(pin_name(ifindex, mode)));
        }
        let until = Instant::now() + patience;
        let mut cause = String::new();
        for &mode in modes {
            loop {
                match self.attach_anew(program, ifindex, mode) {
                    Ok(link) => {
                        self.links.insert(ifindex, link);
                        return Ok(mode);
                    }
                    Err(AttachError::Busy) => {
                        cause = "another XDP program is attached; detach it (ip link set dev ... xdp off) and start again".into();
                        if Instant::now() >= until {
                            break;
                        }
                        thread::sleep(Duration::from_millis(20));
                    }
                    Err(AttachError::Other(text)) => {
                        cause = text;
                        break;
                    }
                }
            }
        }
        Err(RouterError::new(
            format!("cannot attach XDP to {name}"),
            cause,
        ))
    }

    /// None when there is no such link, or its device is gone.
    fn take_over(&mut self, program: &str, ifindex: u32, mode: XdpMode) -> Option<Attachment> {
        let pin = self.pins.join(pin_name(ifindex, mode));
        let link = FdLink::from(PinnedLink::from_pin(&pin).ok()?);
        let link = XdpLink::try_from(link).ok()?;
        let program = self.program(program).ok()?;
        let id = program.attach_to_link(link).ok()?;
        Some(Attachment {
            _link: take(program, id).ok()?,
            pin,
            inherited: true,
        })
    }

    fn attach_anew(
        &mut self,
        program: &str,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<Attachment, AttachError> {
        let flags = match mode {
            XdpMode::Native => AyaMode::Driver,
            XdpMode::Generic => AyaMode::Skb,
        };
        let pin = self.pins.join(pin_name(ifindex, mode));
        let program = self
            .program(program)
            .map_err(|e| AttachError::Other(e.to_string()))?;
        let id = program.attach_to_if_index(ifindex, flags).map_err(|e| {
            let text = chain(&e);
            let busy = ["os error 16", "os error 17"]
                .iter()
                .any(|n| text.contains(n));
            if busy {
                AttachError::Busy
            } else {
                AttachError::Other(text)
            }
        })?;
        let link = take(program, id)?;
        let link = link.pin(&pin).map_err(|e| AttachError::other(&e))?;
        Ok(Attachment {
            _link: link.into(),
            pin,
            inherited: false,
        })
    }

    /// Detaches from a device; no error when it is gone.
    pub(crate) fn detach(&mut self, ifindex: u32) {
        if let Some(attachment) = self.links.remove(&ifindex) {
            // The last descriptor detaches once the pin is gone.
            let _ = fs::remove_file(&attachment.pin);
        }
    }

    /// Removes the pins that a predecessor left on devices that are not ours.
    pub(crate) fn drop_strangers(&self) -> usize {
        let ours: Vec<&Path> = self.links.values().map(|a| a.pin.as_path()).collect();
        let strangers = pins(&self.pins).unwrap_or_default();
        let strangers = strangers
            .iter()
            .filter(|pin| !ours.contains(&pin.as_path()));
        strangers.filter(|pin| fs::remove_file(pin).is_ok()).count()
    }

    /// Detaches from all devices, or, when nothing may pass unseen, leaves the programs where they
    /// are: without a heartbeat they drop what was the workers'.
    pub(crate) fn let_go(&mut self) {
        for (_, attachment) in self.links.drain() {
            let leave = self.fail_closed && (self.stays_closed || attachment.inherited);
            if !leave {
                let _ = fs::remove_file(&attachment.pin);
            }
        }
    }
}

/// Only a BPF link detaches by itself and can be pinned.
fn take(program: &mut Xdp, id: aya::programs::xdp::XdpLinkId) -> Result<FdLink, AttachError> {
    let link = program.take_link(id).map_err(|e| AttachError::other(&e))?;
    FdLink::try_from(link).map_err(|e| AttachError::other(&e))
}

/// The pins of links in a folder; none when there is no folder.
fn pins(folder: &Path) -> io::Result<Vec<PathBuf>> {
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

/// Numbers of the XDP programs in the links that are pinned in `folder`.
pub fn pinned_programs(folder: &Path) -> Vec<u32> {
    let pins = pins(folder).unwrap_or_default();
    let links = pins.iter().filter_map(|pin| PinnedLink::from_pin(pin).ok());
    links
        .filter_map(|link| FdLink::from(link).info().ok())
        .map(|info| info.program_id())
        .collect()
}

/// Removes the pins that a dead router left in `folder`: its XDP links detach.
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
