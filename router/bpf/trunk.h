// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// The trunk: a veth pair for each worker, between the hooks and its AF_XDP socket. A frame on it says
// in its source MAC which port it comes from, or goes to.
//
// A trunk's places are shared by rounds. A round ends when its worker has taken what was on the trunk
// when the round began; so what is on the trunk was put there in two rounds at most, and has to fit.
// Nothing is given back for a packet, so that one that is lost on its way costs its place for a round
// only. In a round each port that sends may take an equal part, as many ports as sent in the last
// round or have sent in this one, and one part is kept for another port; the first packet of a port
// has a place in any case.
#ifndef VIADUCT_TRUNK_H
#define VIADUCT_TRUNK_H

#include "settled.h"

// The longest frame that fits a worker's.
#define TRUNK_FRAME 1664
// Headers of a segment that the kernel cuts for the trunk, at most: both Ethernet headers, outer IPv6,
// UDP, VXLAN, inner IPv6, TCP with all options.
#define SEGMENT_HEADERS (2 * ETH_HLEN + 40 + 8 + 8 + 40 + 60)

// The source MAC of frames on the trunk; `router/src/trunk.rs` has the same.
struct trunk_mac {
	__u8 ours[3];
	__u8 own; // 1: the pod's own MAC was there
	__be16 port;
};

#define TRUNK_MAC { 0x02, 0x76, 0x64 }

static __always_inline bool is_of_worker(const struct trunk_mac *mac)
{
	const __u8 ours[] = TRUNK_MAC;

	return mac->ours[0] == ours[0] && mac->ours[1] == ours[1] && mac->ours[2] == ours[2];
}

struct trunk {
	__u32 ifindex; // of the hooks' end
	__u32 slot;    // of the worker's socket
	__u32 places;  // for packets of one round
};

// By worker.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, struct trunk);
} trunks SEC(".maps");

// The socket's slot, by the index that the worker's end has in its own namespace.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, __u32);
} trunk_slots SEC(".maps");

// Places that a port has taken on a trunk in a round, one for each packet or segment.
struct used {
	__u32 round;
	__u32 places;
};

// The same of all ports together, which all processors count in: a cache line for each trunk.
struct all_used {
	struct used used;
	__u32 parts;  // of the ports that have taken some
	__u32 before; // the same of the round before
	__u64 pad[6];
};

CELLS(trunk_used, BPF_MAP_TYPE_ARRAY, MAX_WORKERS, struct all_used);
// A port's on each trunk: MAX_PORTS for each worker, as many as the loader has workers.
CELLS(port_used, BPF_MAP_TYPE_ARRAY, MAX_WORKERS * MAX_PORTS, struct used);

// Begins a round where that has not been done. Processors that find a new round at once may forget
// some of what they count.
static __always_inline void follow_round(struct all_used *all, __u32 round)
{
	__u32 last = all->used.round;

	if (last == round)
		return;
	all->before = last + 1 == round ? all->parts : 0;
	all->parts = 0;
	all->used.places = 0;
	all->used.round = round;
}

// Sends a frame to a pod: straight into its end of the veth pair, which passes by XDP there, or over it.
static __always_inline int to_pod(const struct port *port)
{
	return port->by_veth ? bpf_redirect(port->ifindex, 0) : bpf_redirect_peer(port->ifindex, 0);
}

static __always_inline __u32 segments(const struct __sk_buff *skb)
{
	if (!skb->gso_size)
		return 1;
	return skb->gso_segs ? skb->gso_segs : skb->len / skb->gso_size + 1;
}

// Takes places for so many packets of a port, if there are some for it. A merged packet may take more
// than its port has left: it would never find enough on a busy trunk. The underlay brings packets of
// many pods, and has two parts.
static __always_inline bool take_places(const struct trunk *trunk, __u32 worker, __u32 round,
					__u32 port, __u32 packets)
{
	__u32 key = worker * MAX_PORTS + port, parts = port ? 1 : 2, shared;
	struct all_used *all = bpf_map_lookup_elem(&trunk_used, &worker);
	struct used *own = bpf_map_lookup_elem(&port_used, &key);

	if (!all || !own)
		return false;
	follow_round(all, round);
	if (own->round != round) {
		own->places = 0;
		own->round = round;
		__sync_fetch_and_add(&all->parts, parts);
	} else {
		shared = all->before > all->parts ? all->before : all->parts;
		if (all->used.places >= trunk->places ||
		    own->places >= trunk->places * parts / (shared + 1))
			return false;
	}
	__sync_fetch_and_add(&all->used.places, packets);
	__sync_fetch_and_add(&own->places, packets);
	return true;
}

// Flows that are told apart where it matters what has become of their last packet: by their hash.
#define FLOWS_APART 4096
// For how long after a change of the entries a flow is looked at for what it has at a worker. One that
// never pauses goes over to the hooks then.
#define ORDERED_NS 1000000000

// The round of its worker's trunk in which a flow had a packet put there.
CELLS(given, BPF_MAP_TYPE_ARRAY, FLOWS_APART, __u32);

static __always_inline __u32 worker_of(struct __sk_buff *skb, const struct device *dev)
{
	return dev->workers > 1 ? bpf_get_hash_recalc(skb) % dev->workers : 0;
}

// Whether a worker may still have packets of this flow, which a hook would overtake. What was put on a
// trunk in a round has been taken, and sent, when the second one after it has begun.
static __always_inline bool is_at_worker(struct __sk_buff *skb, __u32 ifindex)
{
	const struct generation *entries = current_generation();
	const struct device *dev;
	const struct beat *beat;
	__u32 flow, *last;

	// Signed: the clock of the last tick may be behind.
	if (!entries || (__s64)(bpf_ktime_get_coarse_ns() - entries->since) > ORDERED_NS)
		return false;
	dev = bpf_map_lookup_elem(&devices, &ifindex);
	flow = bpf_get_hash_recalc(skb) % FLOWS_APART;
	last = bpf_map_lookup_elem(&given, &flow);
	if (!dev || !last)
		return false;
	beat = beat_of(worker_of(skb, dev));
	return beat && *last && beat->round - *last < 2;
}

static __always_inline bool fits_trunk(const struct __sk_buff *skb)
{
	if (skb->gso_size)
		return skb->gso_size + SEGMENT_HEADERS <= TRUNK_FRAME;
	return skb->len <= TRUNK_FRAME;
}

// Gives a packet to one of the workers: a flow's always to the same.
static __always_inline enum verdict to_trunk(const struct view *packet, const struct device *dev)
{
	struct trunk_mac from = { .ours = TRUNK_MAC, .port = bpf_htons(dev->port) };
	struct __sk_buff *skb = packet->ctx;
	struct ethhdr *eth = packet->data;
	__u32 worker, flow, *last, packets = segments(skb);
	const struct beat *beat;
	struct trunk *trunk;

	if (!dev->queues || !dev->workers || (void *)(eth + 1) > packet->end || !fits_trunk(skb))
		return PASS;
	worker = worker_of(skb, dev);
	trunk = bpf_map_lookup_elem(&trunks, &worker);
	beat = beat_of(worker);
	// Without a socket, as after a crash, nobody waits for the heartbeat's end.
	if (!trunk || !is_fresh(beat) || !bpf_map_lookup_elem(&xsks, &trunk->slot))
		return PASS;
	if (!take_places(trunk, worker, beat->round, dev->port, packets)) {
		add(dev->port, REFUSED, packets, skb->len);
		return DROP;
	}
	flow = bpf_get_hash_recalc(skb) % FLOWS_APART;
	last = bpf_map_lookup_elem(&given, &flow);
	if (last)
		*last = beat->round;
	from.own = same_mac(eth->h_source, dev->mac);
	__builtin_memcpy(eth->h_source, &from, ETH_ALEN);
	note(REDIRECTED);
	return bpf_redirect(trunk->ifindex, 0) == TC_ACT_REDIRECT ? GIVEN : DROP;
}

#endif
