//! Links of XDP and tcx: attached, pinned, taken over from a predecessor, given up.
//!
//! A link's pin is named after its kind and device, so that a successor finds it and replaces the
//! program in it in one step: the device is never without a program in between. It does so once all is
//! known that its own program has to know; until then the predecessor's goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaMode};
use aya::util::KernelVersion;

use crate::bpf::{Pinholes, XdpMode, chain, device_of};
use crate::error::RouterError;
use crate::pins::{KINDS, pin_name, pinned_programs, pins};

/// Whether this kernel has links of tcx, which hooks in tc need: Linux 6.6.
#[must_use]
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|this| this >= KernelVersion::new(6, 6, 0))
}

/// A link, held by its descriptor and by its pin.
pub(crate) struct Attachment {
    _link: FdLink,
    pin: PathBuf,
    origin: Origin,
}

/// Whose a link is.
enum Origin {
    /// This process's own.
    New,
    /// A predecessor's, whose program is in it still. This one is to take its place.
    Waiting { program: String },
    /// A predecessor's, with a program of this process.
    TakenOver,
}

pub(crate) enum AttachError {
    Busy,
    Other(String),
}

impl AttachError {
    fn other(error: &dyn std::error::Error) -> Self {
        Self::Other(chain(error))
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::Busy => "it is busy".into(),
            Self::Other(text) => text,
        }
    }
}

impl Pinholes {
    /// Attaches to a device and pins the link, or takes the link that a predecessor pinned, which
    /// [`take_over`](Self::take_over) puts the program into.
    /// A link that has just been detached holds its device for a moment: busy devices are tried
    /// again until `patience` is over. Also returned is why the driver does not run the program, if
    /// that was tried.
    pub(crate) fn attach(
        &mut self,
        program: &str,
        name: &str,
        ifindex: u32,
        wanted: Option<XdpMode>,
        patience: Duration,
    ) -> Result<(XdpMode, Option<String>), RouterError> {
        let modes: &[XdpMode] = match wanted {
            None => &[XdpMode::Native, XdpMode::Generic],
            Some(XdpMode::Native) => &[XdpMode::Native],
            Some(XdpMode::Generic) => &[XdpMode::Generic],
        };
        for &mode in modes {
            if self.inherit(program, ifindex, Some(mode)) {
                return Ok((mode, None));
            }
        }
        self.remove_pins_of(ifindex);
        let until = Instant::now() + patience;
        let mut causes: Vec<String> = Vec::new();
        for &mode in modes {
            let cause = loop {
                let link = self.attach_anew(program, ifindex, mode);
                match link.and_then(|link| self.pin(link, ifindex, Some(mode))) {
                    Ok(link) => {
                        self.links.insert(ifindex, link);
                        return Ok((mode, causes.pop()));
                    }
                    Err(AttachError::Busy) if Instant::now() < until => {
                        thread::sleep(Duration::from_millis(20));
                    }
                    Err(AttachError::Busy) => {
                        break format!(
                            "another XDP program is attached; detach it (ip link set dev {name} xdp off)"
                        );
                    }
                    Err(AttachError::Other(text)) => break text,
                }
            };
            causes.push(cause);
        }
        causes.dedup();
        Err(RouterError::new(
            format!("cannot attach XDP to {name}"),
            causes.join("; in generic mode: "),
        ))
    }

    /// Attaches a program of tc where packets come from a device, as [`attach`](Self::attach) does: behind what others
    /// have attached there.
    pub(crate) fn attach_tc(
        &mut self,
        program: &str,
        name: &str,
        ifindex: u32,
    ) -> Result<(), RouterError> {
        if self.inherit(program, ifindex, None) {
            return Ok(());
        }
        self.remove_pins_of(ifindex);
        if let Some(node) = self.other_node_at(name) {
            let why = format!(
                "the hooks of node {node} are there, which go on with what they know; stop this router, remove them \
                 (viaduct cleanup --node {node}), and start it again"
            );
            return Err(RouterError::new(
                format!("cannot attach a tc program to {name}"),
                why,
            ));
        }
        let failed = |cause: AttachError| {
            RouterError::new(
                format!("cannot attach a tc program to {name}"),
                cause.text(),
            )
        };
        let link = self.attach_tc_anew(program, name).map_err(failed)?;
        let attachment = self.pin(link, ifindex, None).map_err(failed)?;
        self.links.insert(ifindex, attachment);
        Ok(())
    }

    /// The node of another name whose router has left hooks in tc on a device, if the kernel says what is there. Several
    /// programs of tc can be on a device, unlike XDP's.
    fn other_node_at(&self, name: &str) -> Option<String> {
        let (_, programs) = SchedClassifier::query_tcx(name, TcAttachType::Ingress).ok()?;
        let ours = |program: &&ProgramInfo| program.name().starts_with(b"viaduct_tc_");
        let there: Vec<u32> = programs.iter().filter(ours).map(ProgramInfo::id).collect();
        if there.is_empty() {
            return None;
        }
        let folders = fs::read_dir(self.pins.parent()?).ok()?;
        let others = folders.filter_map(|folder| Some(folder.ok()?.path()));
        let mut others = others.filter(|folder| *folder != self.pins);
        let other = others.find(|folder| {
            let pinned = pinned_programs(folder);
            pinned.iter().any(|program| there.contains(program))
        })?;
        Some(other.file_name()?.to_string_lossy().into_owned())
    }

    /// Takes the link that a predecessor has left on a device, if there is one of this kind. Those of other kinds go.
    fn inherit(&mut self, program: &str, ifindex: u32, mode: Option<XdpMode>) -> bool {
        let pin = self.pins.join(pin_name(ifindex, mode));
        let Ok(link) = PinnedLink::from_pin(&pin) else {
            return false;
        };
        // One whose device has gone is of no use, and its number may be another's by now.
        if !device_of(&pin).is_ok_and(|device| device == ifindex) {
            return false;
        }
        let program = program.to_owned();
        let attachment = Attachment {
            _link: link.into(),
            pin,
            origin: Origin::Waiting { program },
        };
        self.links.insert(ifindex, attachment);
        self.remove_others(ifindex, mode);
        true
    }

    /// Puts this process's programs into the links of a predecessor: from now on packets go by what this process has told
    /// its programs. Returned is what could not be done.
    pub(crate) fn take_over(&mut self) -> Vec<RouterError> {
        let mut failed = Vec::new();
        let devices: Vec<u32> = self.links.keys().copied().collect();
        for device in devices {
            if let Err(error) = self.take_over_link(device) {
                failed.push(error);
            }
        }
        failed
    }

    fn take_over_link(&mut self, ifindex: u32) -> Result<(), RouterError> {
        let Some(attachment) = self.links.get(&ifindex) else {
            return Ok(());
        };
        let Origin::Waiting { program } = &attachment.origin else {
            return Ok(());
        };
        let (program, pin) = (program.clone(), attachment.pin.clone());
        let doing = || format!("cannot replace the program of {}", pin.display());
        let failed = |e: &dyn std::error::Error| RouterError::new(doing(), chain(e));
        let link = PinnedLink::from_pin(&pin).map_err(|e| failed(&e))?;
        let taken = if pin == self.pins.join(pin_name(ifindex, None)) {
            let link = SchedClassifierLink::try_from(FdLink::from(link)).map_err(|e| failed(&e))?;
            let program = self.classifier(&program)?;
            let id = program.attach_to_link(link).map_err(|e| failed(&e))?;
            take_tc(program, id)
        } else {
            let link = XdpLink::try_from(FdLink::from(link)).map_err(|e| failed(&e))?;
            let program = self.program(&program)?;
            let id = program.attach_to_link(link).map_err(|e| failed(&e))?;
            take(program, id)
        };
        let link = taken.map_err(|e| RouterError::new(doing(), e.text()))?;
        let attachment = Attachment {
            _link: link,
            pin: pin.clone(),
            origin: Origin::TakenOver,
        };
        self.links.insert(ifindex, attachment);
        Ok(())
    }

    /// Attaches to one of the kernel's VXLAN devices.
    pub(crate) fn hook_overlay(&mut self, ifindex: u32) -> Result<(), RouterError> {
        let doing = "cannot attach a tc program to the kernel's VXLAN device";
        let name = nix::net::if_::if_indextoname(ifindex);
        let name = name.map_err(|e| RouterError::new(doing, e.to_string()))?;
        self.attach_tc("viaduct_tc_overlay", &name.to_string_lossy(), ifindex)
    }

    /// Only tcx has links (Linux 6.6).
    pub(crate) fn attach_tc_anew(
        &mut self,
        program: &str,
        name: &str,
    ) -> Result<FdLink, AttachError> {
        let program = self.classifier(program);
        let program = program.map_err(|e| AttachError::Other(e.to_string()))?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options(name, TcAttachType::Ingress, order);
        let needs = "hooks in tc need tcx, which Linux has since 6.6";
        let failed = |e| AttachError::Other(format!("{} ({needs})", chain(&e)));
        take_tc(program, id.map_err(failed)?)
    }

    /// Pins of a device that had this number before, or that cannot be taken over.
    fn remove_pins_of(&self, ifindex: u32) {
        for kind in KINDS {
            let _ = fs::remove_file(self.pins.join(pin_name(ifindex, kind)));
        }
    }

    /// A predecessor's links of other kinds.
    fn remove_others(&self, ifindex: u32, than: Option<XdpMode>) {
        for kind in KINDS.into_iter().filter(|kind| *kind != than) {
            let _ = fs::remove_file(self.pins.join(pin_name(ifindex, kind)));
        }
    }

    /// A link that is not pinned yet.
    pub(crate) fn attach_anew(
        &mut self,
        program: &str,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<FdLink, AttachError> {
        let flags = match mode {
            XdpMode::Native => AyaMode::Driver,
            XdpMode::Generic => AyaMode::Skb,
        };
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
                AttachError::Other(meant(text))
            }
        })?;
        take(program, id)
    }

    fn pin(
        &self,
        link: FdLink,
        ifindex: u32,
        mode: Option<XdpMode>,
    ) -> Result<Attachment, AttachError> {
        let pin = self.pins.join(pin_name(ifindex, mode));
        let link = link.pin(&pin).map_err(|e| AttachError::other(&e))?;
        Ok(Attachment {
            _link: link.into(),
            pin,
            origin: Origin::New,
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
    pub(crate) fn remove_foreign(&self) -> usize {
        let ours: Vec<&Path> = self.links.values().map(|a| a.pin.as_path()).collect();
        let pins = pins(&self.pins).unwrap_or_default();
        let foreign = pins.iter().filter(|pin| !ours.contains(&pin.as_path()));
        foreign.filter(|pin| fs::remove_file(pin).is_ok()).count()
    }

    /// Detaches from all devices, unless the programs stay. A predecessor's links stay in any case: a start that fails leaves
    /// the host as it was.
    pub(crate) fn let_go(&mut self) {
        for (_, attachment) in self.links.drain() {
            if !self.stays && matches!(attachment.origin, Origin::New) {
                let _ = fs::remove_file(&attachment.pin);
            }
        }
    }

    /// Detaches from all devices, from a predecessor's, too.
    pub(crate) fn detach_all(&mut self) {
        let devices: Vec<u32> = self.links.keys().copied().collect();
        for device in devices {
            self.detach(device);
        }
    }
}

/// What the kernel means where its error number alone does not say it (`veth_xdp_set` of Linux
/// `drivers/net/veth.c`, `dev_xdp_attach` of `net/core/dev.c`).
fn meant(text: String) -> String {
    let numbers = [
        (
            "os error 34",
            "the MTU of the device, or of a veth's other end, is too large for XDP in the driver",
        ),
        (
            "os error 28",
            "it has fewer receive queues than its other end has transmit queues",
        ),
        ("os error 95", "its driver has no XDP"),
    ];
    let known = numbers.iter().find(|(number, _)| text.contains(number));
    known.map_or(text, |(_, meaning)| (*meaning).to_owned())
}

/// Only a BPF link detaches by itself and can be pinned.
fn take(program: &mut Xdp, id: aya::programs::xdp::XdpLinkId) -> Result<FdLink, AttachError> {
    let link = program.take_link(id).map_err(|e| AttachError::other(&e))?;
    FdLink::try_from(link).map_err(|e| AttachError::other(&e))
}

fn take_tc(
    program: &mut SchedClassifier,
    id: SchedClassifierLinkId,
) -> Result<FdLink, AttachError> {
    let link = program.take_link(id).map_err(|e| AttachError::other(&e))?;
    FdLink::try_from(link).map_err(|e| AttachError::other(&e))
}
