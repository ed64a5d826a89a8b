//! Two nodes' forwarding without a network: what one encapsulates the other
//! delivers, and nothing is allocated on the way.

mod fixture;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fixture::{GATEWAY, HEADROOM, OVERLAY, POD, PORT, chunk, node};
use proptest::prelude::*;
use viaduct_encap::IpPacket;
use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_encap::icmp::IcmpError;
use viaduct_fib::{PortId, Reader};
use viaduct_router::{
    DEFAULT_NETWORK, DropReason, Exception, Frame, Tick, Verdict, WorkerState, answer, forward,
};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.with(|c| c.set(c.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CALLS.with(|c| c.set(c.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Forwards and returns the verdict with the packet's new place.
fn run(
    reader: &Reader,
    chunk: &mut [u8],
    start: usize,
    len: usize,
    from: PortId,
) -> (Verdict, usize, usize) {
    run_with(&mut WorkerState::default(), reader, chunk, start, len, from)
}

fn run_with(
    state: &mut WorkerState,
    reader: &Reader,
    chunk: &mut [u8],
    start: usize,
    len: usize,
    from: PortId,
) -> (Verdict, usize, usize) {
    let mut frame = Frame::new(chunk, start, len).unwrap();
    let verdict = forward(&reader.load(), state, &mut frame, from, Tick(0));
    (verdict, frame.start(), frame.len())
}

#[test]
fn what_one_node_encapsulates_the_other_delivers() {
    let ((_p1, one), (_p2, two)) = (node(1, true), node(2, true));
    let (mut c, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 100);
    let (verdict, start, long) = run(&one, &mut c, HEADROOM, len, PORT);
    assert_eq!(
        (verdict, start, long),
        (Verdict::Send(PortId::UNDERLAY), HEADROOM - 50, len + 50)
    );
    let (verdict, start, short) = run(&two, &mut c, start, long, PortId::UNDERLAY);
    assert_eq!(
        (verdict, start, short),
        (Verdict::Send(PORT), HEADROOM, len)
    );
    let packet = &c[start..start + short];
    assert_eq!(
        Ethernet::parse(packet).unwrap(),
        Ethernet {
            destination: POD,
            source: GATEWAY,
            ether_type: ethernet::IPV4
        }
    );
    let ip = IpPacket::parse(&packet[14..], ethernet::IPV4).unwrap();
    assert_eq!(ip.hop_limit, 62, "each node is a hop");
    assert_eq!(packet[14 + 28..], [7; 100]);
}

#[test]
fn each_refusal_has_its_reason() {
    let ((_p1, one), (_p2, two)) = (node(1, true), node(2, true));
    let refused = |reader: &Reader, src, dst, ttl, payload| {
        let (mut c, len) = chunk(src, dst, ttl, payload);
        run(reader, &mut c, HEADROOM, len, PORT).0
    };
    let (me, there) = ([10, 244, 1, 2], [10, 244, 2, 2]);
    let drop = Verdict::Drop;
    let network = DEFAULT_NETWORK;
    for (verdict, expected) in [
        (
            refused(&one, [10, 244, 1, 9], there, 64, 1),
            drop(DropReason::SpoofedSource),
        ),
        (
            refused(&one, me, [10, 99, 0, 1], 64, 1),
            Verdict::Punt(DropReason::NoRoute),
        ),
        (
            refused(&one, me, there, 1, 1),
            Verdict::Exception(Exception::IcmpError {
                network,
                error: IcmpError::TimeExceeded,
                reason: DropReason::HopLimitExceeded,
            }),
        ),
        (
            refused(&one, me, there, 64, 1450),
            Verdict::Exception(Exception::IcmpError {
                network,
                error: IcmpError::PacketTooBig { mtu: 1450 },
                reason: DropReason::TooBig,
            }),
        ),
        (
            refused(&one, me, [224, 0, 0, 1], 64, 1),
            drop(DropReason::Multicast),
        ),
        (
            refused(&node(1, false).1, me, there, 64, 1),
            drop(DropReason::NextHopUnresolved),
        ),
    ] {
        assert_eq!(verdict, expected);
    }
    // From the underlay: a source that is not the sending node's, a wrong VTEP MAC.
    let (mut c, len) = chunk(me, there, 64, 1);
    let (_, start, long) = run(&one, &mut c, HEADROOM, len, PORT);
    let mut lie = c.clone();
    lie[start + 50] ^= 4;
    assert_eq!(
        run(&two, &mut lie, start, long, PortId::UNDERLAY).0,
        Verdict::Drop(DropReason::WrongVtepMac)
    );
    assert_eq!(
        run(&one, &mut c, start, long, PortId::UNDERLAY).0,
        Verdict::Drop(DropReason::WrongVtepMac)
    );
}

/// A frame of the pod, changed; what becomes of it.
fn sent(change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    sent_as(WorkerState::default(), 64, change)
}

fn sent_as(mut state: WorkerState, ttl: u8, change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    let (_publisher, one) = node(1, true);
    let (c, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], ttl, 100);
    let mut frame = c[HEADROOM..HEADROOM + len].to_vec();
    change(&mut frame);
    let mut c = vec![0; 4096];
    c[HEADROOM..HEADROOM + frame.len()].copy_from_slice(&frame);
    run_with(&mut state, &one, &mut c, HEADROOM, frame.len(), PORT).0
}

#[test]
fn a_frame_for_another_mac_is_not_taken() {
    let drop = Verdict::Drop;
    for mac in [[0; 6], [2, 0, 0, 0, 2, 9], POD.0] {
        let verdict = sent(|frame| frame[..6].copy_from_slice(&mac));
        assert_eq!(verdict, drop(DropReason::ForeignMac), "{mac:?}");
    }
    let many = sent(|frame| frame[..6].copy_from_slice(&[0xff; 6]));
    assert_eq!(many, drop(DropReason::Multicast));
}

#[test]
fn priority_tags_are_taken_off_and_others_dropped() {
    let to_node = Verdict::Send(PortId::UNDERLAY);
    let tagged = |tags: &[[u8; 4]]| {
        sent(|frame| {
            for tag in tags.iter().rev() {
                frame.splice(12..12, *tag);
            }
        })
    };
    let (priority, vlan) = ([0x81, 0, 0xe0, 0], [0x81, 0, 0, 7]);
    assert_eq!(tagged(&[priority]), to_node);
    assert_eq!(tagged(&[[0x88, 0xa8, 0, 0], priority]), to_node);
    let dropped = Verdict::Drop(DropReason::VlanTagged);
    for tags in [&[vlan][..], &[priority, vlan], &[priority; 3]] {
        assert_eq!(tagged(tags), dropped, "{tags:?}");
    }
}

/// The kernel looks at the hops first, too.
#[test]
fn of_two_faults_the_hops_are_told() {
    let verdict = sent_as(WorkerState::new(64), 1, |frame| {
        frame.resize(1600, 0);
        frame[16..18].copy_from_slice(&1586u16.to_be_bytes());
        frame[24..26].fill(0);
        let sum = !viaduct_encap::checksum::fold(viaduct_encap::checksum::sum(&frame[14..34]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    });
    let Verdict::Exception(Exception::IcmpError { error, .. }) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(error, IcmpError::TimeExceeded);
}

/// An error is made in the frame of its packet, and goes back to the sender.
#[test]
fn an_error_goes_back_to_the_sender() {
    let (_publisher, one) = node(1, true);
    let (mut c, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 1, 100);
    let sent = c[HEADROOM + 14..HEADROOM + len].to_vec();
    let (verdict, start, len) = run(&one, &mut c, HEADROOM, len, PORT);
    let Verdict::Exception(Exception::IcmpError { network, error, .. }) = verdict else {
        panic!("{verdict:?}");
    };
    let mut frame = Frame::new(&mut c, start, len).unwrap();
    let verdict = answer(&one.load(), &mut frame, network, error);
    assert_eq!(verdict, Some(Verdict::Send(PORT)));
    let packet = frame.packet();
    assert_eq!(Ethernet::parse(packet).unwrap().destination, POD);
    let ip = IpPacket::parse(&packet[14..], ethernet::IPV4).unwrap();
    assert_eq!(ip.src, OVERLAY);
    assert_eq!(ip.dst, std::net::IpAddr::from([10, 244, 1, 2]));
    assert_eq!(packet[14 + 28..], sent, "the quote is what was sent");
}

#[test]
fn warm_forwarding_neither_allocates_nor_frees() {
    let ((_p1, one), (_p2, two)) = (node(1, true), node(2, true));
    let (original, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 1000);
    let mut c = original.clone();
    // Fewer flows are kept than there are: all is learned and given up on the way.
    let (mut without, mut with) = (WorkerState::default(), WorkerState::new(64));
    let before = CALLS.with(Cell::get);
    for n in 0..10_000u16 {
        for state in [&mut without, &mut with] {
            c.copy_from_slice(&original);
            c[HEADROOM + 34..HEADROOM + 36].copy_from_slice(&(n % 200).to_be_bytes());
            let (verdict, start, long) = run_with(state, &one, &mut c, HEADROOM, len, PORT);
            assert!(matches!(verdict, Verdict::Send(PortId::UNDERLAY)));
            assert!(matches!(
                run(&two, &mut c, start, long, PortId::UNDERLAY).0,
                Verdict::Send(PORT)
            ));
        }
    }
    assert_eq!(CALLS.with(Cell::get) - before, 0, "calls of the allocator");
}

proptest! {
    /// Any bytes from either side end in one verdict, and the packet stays
    /// inside its frame, the answer that an error may need too.
    #[test]
    fn any_bytes_end_in_a_verdict(mut bytes in prop::collection::vec(any::<u8>(), 0..2048), start in 0usize..200, underlay: bool, shape: bool) {
        let (_publisher, reader) = node(1, true);
        if shape {
            // Near a real packet, so that the later stages are reached too.
            let (c, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 64);
            let at = bytes.len().min(len);
            for (to, from) in bytes.iter_mut().zip(&c[HEADROOM..HEADROOM + at]).skip(start % 60) { *to = *from; }
        }
        let size = bytes.len();
        let start = start.min(size);
        let from = if underlay { PortId::UNDERLAY } else { PORT };
        let (verdict, start, len) = run(&reader, &mut bytes, start, size - start, from);
        prop_assert!(start + len <= size);
        if let Verdict::Exception(Exception::IcmpError { network, error, .. }) = verdict {
            let mut frame = Frame::new(&mut bytes, start, len).unwrap();
            let _ = answer(&reader.load(), &mut frame, network, error);
            prop_assert!(frame.start() + frame.len() <= size);
        }
    }
}
