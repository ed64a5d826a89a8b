// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// The trunk: a veth pair for each worker, between the hooks and its AF_XDP socket. A frame on it says
// in its source MAC which port it comes from, or goes to.
#ifndef VIADUCT_TRUNK_H
#define VIADUCT_TRUNK_H

#include "rules.h"

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

struct trunk {
	__u32 ifindex; // of the hooks' end
	__u32 slot;    // of the worker's socket
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

static __always_inline bool fits_trunk(const struct __sk_buff *skb)
{
	if (skb->gso_size)
		return skb->gso_size + SEGMENT_HEADERS <= TRUNK_FRAME;
	return skb->len <= TRUNK_FRAME;
}

// Gives a packet to one of the workers: a flow's always to the same.
static __always_inline bool to_trunk(const struct view *packet, const struct device *dev)
{
	struct trunk_mac from = { .ours = { 0x02, 0x76, 0x64 }, .port = bpf_htons(dev->port) };
	struct __sk_buff *skb = packet->ctx;
	struct ethhdr *eth = packet->data;
	struct trunk *trunk;
	__u32 worker;

	if (!dev->queues || !dev->workers || (void *)(eth + 1) > packet->end || !fits_trunk(skb))
		return false;
	worker = dev->workers > 1 ? bpf_get_hash_recalc(skb) % dev->workers : 0;
	trunk = bpf_map_lookup_elem(&trunks, &worker);
	// Without a socket, as after a crash, nobody waits for the heartbeat's end.
	if (!trunk || !lives(worker) || !bpf_map_lookup_elem(&xsks, &trunk->slot))
		return false;
	from.own = same_mac(eth->h_source, dev->mac);
	__builtin_memcpy(eth->h_source, &from, ETH_ALEN);
	note(REDIRECTED);
	return bpf_redirect(trunk->ifindex, 0) == TC_ACT_REDIRECT;
}

#endif
