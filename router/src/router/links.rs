//! Ports: sockets on every queue of a device, given to the workers, and XDP.

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use viaduct_encap::{MacAddr, Vni};
use viaduct_fib::PortId;

use super::{Handle, Router};
use crate::bpf::{Device, XdpMode};
use crate::error::{RouterError, cause};
use crate::files;
use crate::sys::{self, Channels};
use crate::worker::Link;
use crate::xsk::{Depth, Granted, MAX_DEPTH, RingSizes, Umem, Xsk, share};

/// Slots of the socket map for each port.
pub(super) const QUEUES_PER_PORT: u32 = 64;
/// Entries of transmit rings: the underlay's, and a pod's.
pub(super) const UNDERLAY_RING: u32 = 2048;
const POD_RING: u32 = 512;

/// What a port got from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The device.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Where its XDP program runs; none: its hook is in tc, and its packets come over the trunk.
    pub mode: Option<XdpMode>,
    /// Why it does not run in the driver, if that was tried.
    pub not_native: Option<String>,
    /// Zero-copy, as read back from the sockets.
    pub zero_copy: bool,
    /// Receive queues, all owned by workers; 0 with a hook in tc, which leaves queues to the kernel.
    pub queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// Whether its GRO was on and is off while it is attached: generic XDP comes after GRO, and what
    /// that has put together fits no frame.
    pub gro_off: bool,
    /// Whether it is a veth with native XDP: packets may have a VLAN tag beside them.
    pub native_veth: bool,
    /// The MAC that frames from the underlay are for, once it is known.
    pub own_mac: Option<MacAddr>,
    /// What the pod is; the underlay is none.
    pub pod: Option<PodSide>,
}

impl Attached {
    /// A device with its hook in tc.
    fn in_tc(interface: &str, ifindex: u32, pod: Option<PodSide>) -> Self {
        Self {
            interface: interface.to_owned(),
            ifindex,
            mode: None,
            not_native: None,
            zero_copy: false,
            queues: 0,
            tx_queues: 0,
            gro_off: false,
            native_veth: false,
            own_mac: None,
            pod,
        }
    }

    /// Gives the device back as it was, if it is there still.
    pub(super) fn restore(&self) {
        if self.gro_off {
            let _ = sys::set_gro(&self.interface, true);
        }
    }
}

/// What the XDP programs know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSide {
    /// Its network's.
    pub vni: Vni,
    /// Its own; nothing else is taken from it.
    pub mac: MacAddr,
    /// Likewise.
    pub addresses: Vec<IpAddr>,
    /// Whether the kernel carries its network, too.
    pub carried: bool,
    /// Whether workers have sockets at its own queues ([`Hook::Xdp`]), as they need for one whose rate is limited.
    pub sockets: bool,
}

/// Where packets of a device are looked at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// In tc (tcx): any device, which keeps all its offloads. Workers get what is theirs over the trunk.
    Tc,
    /// In XDP: workers have AF_XDP sockets at the device's own queues.
    Xdp,
}

impl Router {
    /// Binds sockets to every queue of a device, gives them to the workers and attaches XDP. The
    /// underlay has no `pod`. While there is no underlay, the pods' packets are the kernel's.
    ///
    /// # Errors
    /// Says what refused; the device is as it was.
    pub fn attach(
        &mut self,
        port: PortId,
        interface: &str,
        ifindex: u32,
        pod: Option<PodSide>,
    ) -> Result<Attached, RouterError> {
        // What came too late for whoever asked may be what is in the way.
        self.workers.iter_mut().for_each(Handle::settle);
        self.check_free(port, interface, ifindex)?;
        let hook = match &pod {
            Some(pod) if pod.sockets => Hook::Xdp,
            Some(_) => Hook::Tc,
            None => self.options.underlay,
        };
        if hook == Hook::Tc {
            return self.attach_tc(port, interface, ifindex, pod);
        }
        let channels = self.queues(interface, pod.is_none())?;
        // A socket for each queue, and the XDP link.
        let doing = format!("cannot attach {interface}");
        files::check_room(&doing, channels.rx as usize + 1)?;
        let links = self.bind(port, interface, channels, pod.is_none())?;
        let mut sockets = links.iter().flat_map(|link| &link.queues);
        let mut attached = Attached {
            mode: Some(XdpMode::Native),
            zero_copy: sockets.all(|xsk| xsk.granted() == Granted { zero_copy: true }),
            queues: channels.rx,
            tx_queues: channels.tx,
            ..Attached::in_tc(interface, ifindex, pod)
        };
        let given = self.register(port, &attached, links);
        match given.and_then(|()| self.run_xdp(&attached)) {
            Ok((mode, not_native)) => {
                attached.mode = Some(mode);
                attached.not_native = not_native;
                // Where it cannot be set, there is none.
                attached.gro_off =
                    mode == XdpMode::Generic && sys::set_gro(interface, false).unwrap_or(false);
                attached.native_veth = mode == XdpMode::Native && sys::is_veth(interface);
            }
            Err(e) => {
                self.withdraw(port, &attached);
                return Err(e);
            }
        }
        self.note_attached(port, &attached);
        if attached.native_veth {
            let open = port == PortId::UNDERLAY || self.attached(PortId::UNDERLAY).is_some();
            if let Err(e) = self.set_device(port, &attached, open) {
                let _ = self.detach(port);
                return Err(e);
            }
        }
        self.open_with(port)?;
        Ok(attached)
    }

    /// Without sockets of its own: the hook gives what is the workers' to the trunk.
    fn attach_tc(
        &mut self,
        port: PortId,
        interface: &str,
        ifindex: u32,
        pod: Option<PodSide>,
    ) -> Result<Attached, RouterError> {
        let attached = Attached::in_tc(interface, ifindex, pod);
        let workers = 0..self.workers.len();
        let links = workers.map(|_| Box::new(Link::over_trunk(port))).collect();
        let given = self.register(port, &attached, links).and_then(|()| {
            if attached.pod.is_some() {
                self.pinholes.settled.set_link(port, ifindex)?;
            }
            let program = match attached.pod {
                Some(_) => "viaduct_tc_pod",
                None => "viaduct_tc_underlay",
            };
            self.pinholes.attach_tc(program, interface, ifindex)
        });
        if let Err(e) = given {
            self.withdraw(port, &attached);
            return Err(e);
        }
        self.note_attached(port, &attached);
        self.open_with(port)?;
        Ok(attached)
    }

    fn note_attached(&mut self, port: PortId, attached: &Attached) {
        if let Some(place) = self.ports.get_mut(usize::from(port.0)) {
            *place = Some(attached.clone());
        }
    }

    /// With the underlay the pods' packets are the workers'.
    fn open_with(&mut self, port: PortId) -> Result<(), RouterError> {
        if port == PortId::UNDERLAY
            && let Err(e) = self.open_pods(true)
        {
            let _ = self.detach(port);
            return Err(e);
        }
        Ok(())
    }

    fn check_free(&self, port: PortId, interface: &str, ifindex: u32) -> Result<(), RouterError> {
        let mut held = self.workers.iter();
        let held = held.find_map(|worker| worker.holds(port, ifindex));
        // The trunk has the last number.
        let ports = self.ports.get(..=self.options.max_ports);
        let why = match ports.unwrap_or_default().get(usize::from(port.0)) {
            Some(None) => match held {
                None => return Ok(()),
                Some(why) => why,
            },
            None => format!(
                "there are {} ports already; raise workers.max_ports",
                self.options.max_ports
            ),
            Some(Some(other)) => format!("{port} is taken by {}", other.interface),
        };
        Err(RouterError::new(format!("cannot attach {interface}"), why))
    }

    fn run_xdp(&mut self, to: &Attached) -> Result<(XdpMode, Option<String>), RouterError> {
        let program = match to.pod {
            Some(_) => "viaduct_pod",
            None => "viaduct_underlay",
        };
        let (wanted, patience) = (self.options.xdp_mode, self.busy_patience);
        self.pinholes
            .attach(program, &to.interface, to.ifindex, wanted, patience)
    }

    /// Lets the XDP programs on the pods give packets to the workers, or has them leave all to the
    /// kernel.
    fn open_pods(&mut self, open: bool) -> Result<(), RouterError> {
        let pods = (0u16..).map(PortId).zip(self.ports.clone()).skip(1);
        for (port, pod) in pods {
            if let Some(pod) = pod {
                self.set_device(port, &pod, open)?;
            }
        }
        Ok(())
    }

    /// Without queues that have an owner, the XDP programs leave everything to the kernel.
    pub(super) fn set_device(
        &mut self,
        port: PortId,
        it: &Attached,
        open: bool,
    ) -> Result<(), RouterError> {
        let workers = u32::try_from(self.workers.len()).unwrap_or(1);
        let pod = it.pod.as_ref();
        let device = Device {
            base: base(port),
            queues: match it.mode {
                _ if !open => 0,
                Some(_) => it.queues,
                // The trunk has one for each worker.
                None => 1,
            },
            workers,
            vni: pod.map_or(0, |pod| pod.vni.get()),
            mac: pod
                .map(|pod| pod.mac)
                .or(it.own_mac)
                .map_or([0; 6], |mac| mac.0),
            no_slow_path: pod.map_or(0, |pod| u8::from(!pod.carried)),
            native_veth: u8::from(it.native_veth),
            port: port.0,
            zero: 0,
        };
        self.pinholes
            .set_device((&it.interface, it.ifindex), device)
    }

    /// Hooks the kernel's VXLAN devices over IPv4 and IPv6, which carry the first network, and lets others go: what they take
    /// apart for the hook on the underlay goes straight to its pod.
    ///
    /// # Errors
    /// When a device cannot be hooked: its packets take the kernel's path.
    pub fn set_overlay_devices(&mut self, devices: [Option<u32>; 2]) -> Result<(), RouterError> {
        let gone = self.overlay.iter().flatten();
        let gone: Vec<u32> = gone
            .filter(|it| !devices.contains(&Some(**it)))
            .copied()
            .collect();
        let mut done = Ok(());
        for (family, device) in (0u32..).zip(devices) {
            let hooked = match device {
                Some(index) if !self.pinholes.links.contains_key(&index) => {
                    self.pinholes.hook_overlay(index)
                }
                _ => Ok(()),
            };
            let index = if hooked.is_ok() { device } else { None };
            let noted = self.pinholes.set_overlay(family, index.unwrap_or(0));
            done = done.and(hooked).and(noted);
        }
        for index in gone {
            self.pinholes.detach(index);
        }
        self.overlay = devices;
        done
    }

    /// Notes which MAC a pod has, or the underlay: frames from there for another one are left to the
    /// kernel.
    ///
    /// # Errors
    /// When the XDP programs cannot be told.
    pub fn set_mac(&mut self, port: PortId, mac: MacAddr) -> Result<(), RouterError> {
        let open = self.attached(PortId::UNDERLAY).is_some();
        let attached = self.ports.get_mut(usize::from(port.0));
        let Some(attached) = attached.and_then(Option::as_mut) else {
            return Ok(());
        };
        if let Some(pod) = &mut attached.pod {
            pod.mac = mac;
        } else {
            attached.own_mac = Some(mac);
        }
        let attached = attached.clone();
        if port == PortId::UNDERLAY {
            self.pinholes.settled.set_underlay(attached.ifindex, mac)?;
        }
        self.set_device(port, &attached, open)
    }

    /// Notes whether a pod has XDP of its own in the driver of its end of the veth pair: hooks in tc give it frames over the
    /// pair then, and straight into the pod's end otherwise.
    ///
    /// # Errors
    /// When hooks cannot be told.
    pub fn set_own_xdp(&mut self, port: PortId, has: bool) -> Result<(), RouterError> {
        self.pinholes.settled.set_by_veth(port, has)
    }

    /// Whether the device still has the queues that it had when it was attached.
    pub fn fits(&self, port: PortId) -> bool {
        let attached = self.attached(port);
        attached.is_some_and(|it| match sys::channels(&it.interface) {
            _ if it.mode.is_none() => true,
            Ok(now) => (now.rx, now.tx) == (it.queues, it.tx_queues),
            // It is gone, or will not say: that is not for this question.
            Err(_) => true,
        })
    }

    /// The device's queues, each of which some worker can own.
    fn queues(&self, interface: &str, underlay: bool) -> Result<Channels, RouterError> {
        let doing = || format!("cannot own the queues of {interface}");
        let channels =
            sys::channels(interface).map_err(|e| RouterError::new(doing(), e.to_string()))?;
        let queues = channels.rx;
        let most = self
            .options
            .max_queues
            .filter(|_| underlay)
            .unwrap_or(QUEUES_PER_PORT)
            .min(QUEUES_PER_PORT);
        if queues > most {
            let why = format!(
                "it has {queues} receive queues and at most {most} would have an owner; the others would take the slow path \
                 unseen. Reduce them (ethtool -L {interface}) or raise underlay.queues"
            );
            return Err(RouterError::new(doing(), why));
        }
        Ok(channels)
    }

    /// One link for each worker, with the queues that it owns. Workers that own none which can
    /// send are spread over those that do, and always over the same: a flow keeps its order.
    fn bind(
        &self,
        port: PortId,
        interface: &str,
        channels: Channels,
        underlay: bool,
    ) -> Result<Vec<Box<Link>>, RouterError> {
        let sizes = RingSizes {
            area: MAX_DEPTH,
            receive: MAX_DEPTH,
            transmit: if underlay { UNDERLAY_RING } else { POD_RING },
        };
        let mut links = Vec::new();
        let sending = channels.rx.min(channels.tx).max(1) as usize;
        for (index, worker) in self.workers.iter().enumerate() {
            let own = (0..channels.rx).filter(|q| *q as usize % self.workers.len() == index);
            // The kernel sends nothing from a socket on a queue that the device only receives on.
            let senders = own.clone().filter(|q| *q < channels.tx).count();
            let sockets = own.map(|queue| {
                bind_patiently(&worker.umem, interface, queue, sizes, self.busy_patience).map_err(
                    |e| {
                        RouterError::new(
                            format!("cannot bind AF_XDP to queue {queue} of {interface}"),
                            cause(&e, 0),
                        )
                    },
                )
            });
            let queues = sockets.collect::<Result<Vec<_>, _>>()?;
            links.push(Box::new(Link {
                port,
                depths: vec![
                    Depth::new(underlay, share(self.options.max_ports), queues.len());
                    queues.len()
                ],
                queues,
                senders,
                via: index % sending,
                over_trunk: false,
            }));
        }
        Ok(links)
    }

    /// Puts the sockets into the socket map, and gives them to their workers.
    fn register(
        &mut self,
        port: PortId,
        attached: &Attached,
        links: Vec<Box<Link>>,
    ) -> Result<(), RouterError> {
        let workers = u32::try_from(self.workers.len()).unwrap_or(1);
        for (index, link) in (0u32..).zip(&links) {
            for (nth, xsk) in (0u32..).zip(&link.queues) {
                self.pinholes
                    .set_socket(base(port) + index + nth * workers, xsk.fd())?;
            }
        }
        let underlay = self.attached(PortId::UNDERLAY).is_some();
        if let Some(pod) = &attached.pod {
            self.pinholes
                .set_sources(attached.ifindex, &pod.addresses)?;
        }
        self.set_device(port, attached, underlay || port == PortId::UNDERLAY)?;
        if let Some(sockets) = self.sockets.get_mut(usize::from(port.0)) {
            sockets.extend(links.iter().flat_map(|l| &l.queues).map(Xsk::fd));
        }
        for (index, link) in links.into_iter().enumerate() {
            if let Some(worker) = self.workers.get_mut(index) {
                worker.give(link)?;
            }
        }
        Ok(())
    }

    /// Has the workers finish the port's packets, closes its sockets, gets its frames back and
    /// detaches XDP. With the underlay the pods' packets become the kernel's, too.
    ///
    /// # Errors
    /// When the pods' packets cannot be left to the kernel. The port is detached all the same.
    pub fn detach(&mut self, port: PortId) -> Result<(), RouterError> {
        let Some(attached) = self
            .ports
            .get_mut(usize::from(port.0))
            .and_then(Option::take)
        else {
            return Ok(());
        };
        // First the programs leave the packets to the kernel, then the workers finish what they
        // have, then the device is let go: nothing is lost on the way.
        let closed = match port {
            PortId::UNDERLAY => self.open_pods(false),
            _ => Ok(()),
        };
        self.withdraw(port, &attached);
        self.pinholes.detach(attached.ifindex);
        attached.restore();
        closed
    }

    fn withdraw(&mut self, port: PortId, attached: &Attached) {
        if let Some(sockets) = self.sockets.get_mut(usize::from(port.0)) {
            sockets.clear();
        }
        // What workers still send there over the trunk is dropped by the hook.
        let unlinked = self.pinholes.settled.unset_link(port);
        drop(unlinked);
        self.pinholes.remove_device(attached.ifindex);
        if let Some(pod) = &attached.pod {
            self.pinholes
                .remove_sources(attached.ifindex, &pod.addresses);
        }
        // Before they are closed: what else gets their numbers is no socket of this port.
        for slot in (base(port)..).take(attached.queues as usize) {
            self.pinholes.remove_socket(slot);
        }
        // Those that hand over before those that send for them: what is handed over is sent.
        for worker in self.workers.iter_mut().rev() {
            worker.take_back(port, &attached.interface, attached.ifindex);
        }
    }
}

/// A queue is busy for some milliseconds after its last socket closed.
fn bind_patiently(
    umem: &Umem,
    interface: &str,
    queue: u32,
    sizes: RingSizes,
    patience: Duration,
) -> io::Result<Xsk> {
    let mut wait = Duration::from_millis(16);
    loop {
        match Xsk::bind(umem, interface, queue, sizes) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && wait < patience => {
                thread::sleep(wait);
                wait *= 2;
            }
            result => return result,
        }
    }
}

/// The first of a port's slots in the socket map.
pub(super) fn base(port: PortId) -> u32 {
    u32::from(port.0).saturating_mul(QUEUES_PER_PORT)
}
