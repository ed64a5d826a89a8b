//! The workers' trunks.

use std::io;
use std::thread;

use aya::programs::links::FdLink;

use super::Router;
use super::links::{UNDERLAY_RING, base};
use crate::bpf::{Pinholes, Trunk, XdpMode};
use crate::error::{RouterError, cause};
use crate::trunk::{Ends, Pair, bring_up, pair};
use crate::worker::{Link, trunk_number};
use crate::xsk::{Depth, MAX_DEPTH, RingSizes, Umem, Xsk, share};

/// A worker's trunk, made.
struct Made {
    pair: Pair,
    xsk: Xsk,
    links: [FdLink; 2],
}

impl Router {
    /// Makes a trunk for each worker, and gives it to it.
    ///
    /// # Errors
    /// Says what refused; nothing stays behind.
    pub(super) fn make_trunks(&mut self) -> Result<(), RouterError> {
        let doing = "cannot make the trunks between hooks and workers";
        let port = trunk_number(self.ports.len());
        let umems: Vec<Umem> = self.workers.iter().map(|w| w.umem.clone()).collect();
        let pinholes = &mut self.pinholes;
        // A thread is in one network namespace at a time, and this one's stays as it is.
        let made = thread::scope(|scope| {
            let thread = scope.spawn(|| make_all(pinholes, &umems));
            let joined = thread.join();
            joined.unwrap_or_else(|_| Err(RouterError::new(doing, "the thread panicked")))
        })?;
        let share = share(self.options.max_ports);
        for (index, made) in made.into_iter().enumerate() {
            let Made { pair, xsk, links } = made;
            let slot = base(port) + u32::try_from(index).unwrap_or(0);
            self.pinholes.set_socket(slot, xsk.fd())?;
            let ifindex = pair.outer.index();
            let depth = Depth::of_trunk(share);
            let trunk = Trunk {
                ifindex,
                slot,
                // What is there was put there in two rounds at most.
                places: depth.own() / 2,
            };
            self.pinholes.set_trunk(index, trunk, pair.inner)?;
            if let Some(sockets) = self.sockets.get_mut(usize::from(port.0)) {
                sockets.push(xsk.fd());
            }
            self.trunks.push((links, pair.outer));
            let link = Link {
                port,
                depths: vec![depth],
                queues: vec![xsk],
                senders: 1,
                via: index,
                over_trunk: false,
            };
            if let Some(worker) = self.workers.get_mut(index) {
                worker.give(Box::new(link))?;
            }
        }
        Ok(())
    }
}

fn make_all(pinholes: &mut Pinholes, umems: &[Umem]) -> Result<Vec<Made>, RouterError> {
    let failed = |e: io::Error| {
        RouterError::new(
            "cannot make the trunks between hooks and workers",
            cause(&e, 0),
        )
    };
    let mut ends = Ends::enter().map_err(failed)?;
    let mut inner = Vec::new();
    for (index, umem) in umems.iter().enumerate() {
        let name = format!("trunk{index}");
        let pair = pair(&mut ends, &name).map_err(failed)?;
        let sizes = RingSizes {
            area: MAX_DEPTH,
            receive: MAX_DEPTH,
            transmit: UNDERLAY_RING,
        };
        let xsk = Xsk::bind(umem, &name, 0, sizes).map_err(failed)?;
        let link = pinholes.attach_anew("viaduct_trunk", pair.inner, XdpMode::Native);
        let link = link.map_err(|e| RouterError::new("cannot attach XDP to a trunk", e.text()))?;
        inner.push((pair, xsk, link));
    }
    ends.leave().map_err(failed)?;
    let mut made = Vec::new();
    for (pair, xsk, link) in inner {
        let name = bring_up(pair.outer.index()).map_err(failed)?;
        let hook = pinholes.attach_tc_anew("viaduct_tc_trunk", &name);
        let hook = hook.map_err(|e| {
            RouterError::new(format!("cannot attach a tc program to {name}"), e.text())
        })?;
        let links = [link, hook];
        made.push(Made { pair, xsk, links });
    }
    Ok(made)
}
