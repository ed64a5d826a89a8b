// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// Pinholes in XDP: what the workers forward goes to their AF_XDP sockets, everything
// else is XDP_PASS, and so is everything when the workers' heartbeat stops.
// Except forged packets: what workers would drop as such, the kernel does not
// get either.
#include <bpf/bpf_core_read.h>
#include <linux/pkt_cls.h>

#include "rules.h"
#include "trunk.h"

// The kernel says where its fields are (BTF), and lets a program read them.
volatile const __u32 reads_kernel = 0;

// What is read here of the kernel's types. A veth has an skb when native XDP runs, and keeps a
// pointer to it right behind the xdp_buff, for the functions that tell of metadata
// (struct veth_xdp_buff in drivers/net/veth.c).
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct xdp_buff {
	void *data;
};

struct xdp_metadata_ops {
	void *xmo_rx_vlan_tag;
};

struct sk_buff {
	__u32 vlan_all; // VLAN's EtherType, and the tag itself; 0 is none
};
#pragma clang attribute pop

static __always_inline enum verdict to_socket(const struct view *packet, const struct device *dev)
{
	struct xdp_md *ctx = packet->ctx;
	__u32 queue = ctx->rx_queue_index;
	__u32 worker = dev->workers ? queue % dev->workers : 0;

	if (queue >= dev->queues || !lives(worker))
		return PASS;
	// A slot without a socket, as after a crash, gives the flags' action.
	if (bpf_redirect_map(&xsks, dev->base + queue, XDP_PASS) != XDP_REDIRECT)
		return PASS;
	note(REDIRECTED);
	return GIVEN;
}

static __always_inline int in_xdp(enum verdict verdict)
{
	if (verdict == GIVEN)
		return XDP_REDIRECT;
	return verdict == DROP ? XDP_DROP : XDP_PASS;
}

static __always_inline struct view view_of(struct xdp_md *ctx)
{
	return (struct view){
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.ifindex = ctx->ingress_ifindex,
	};
}

// Whether the sending device has put a VLAN tag beside the packet: a VLAN device or a bridge at a
// veth's other end leaves it in the skb, and a redirected packet has lost it.
static __always_inline bool tagged_beside(struct xdp_md *ctx, const struct device *dev)
{
	struct {
		__be16 kind;
		__u16 tag;
	} vlan = {};
	struct sk_buff *skb = 0;
	void *behind;

	if (!reads_kernel || !dev->native_veth ||
	    !bpf_core_field_exists(struct sk_buff, vlan_all) ||
	    !bpf_core_field_exists(struct xdp_metadata_ops, xmo_rx_vlan_tag))
		return false;
	behind = (void *)ctx + bpf_core_type_size(struct xdp_buff);
	if (bpf_probe_read_kernel(&skb, sizeof(skb), behind) || !skb)
		return false;
	if (bpf_probe_read_kernel(&vlan, sizeof(vlan),
				  __builtin_preserve_access_index(&skb->vlan_all)))
		return false;
	return vlan.tag & VLAN_ID;
}

// NIC.
SEC("xdp")
int viaduct_underlay(struct xdp_md *ctx)
{
	struct view packet = view_of(ctx);
	struct device *dev = bpf_map_lookup_elem(&devices, &packet.ifindex);

	// A VLAN of this interface is another network.
	if (dev && tagged_beside(ctx, dev))
		return in_xdp(pass());
	return in_xdp(from_underlay(&packet, to_socket));
}

// Host side of a pod's veth.
SEC("xdp")
int viaduct_pod(struct xdp_md *ctx)
{
	struct view packet = view_of(ctx);
	struct device *dev = bpf_map_lookup_elem(&devices, &packet.ifindex);

	if (!dev)
		return in_xdp(pass());
	if (tagged_beside(ctx, dev))
		return in_xdp(drop(VLAN_TAGGED));
	return in_xdp(from_pod(&packet, dev, to_socket));
}

// A worker's end of its trunk. Only what a hook has sent comes here; anything else is nobody's.
SEC("xdp")
int viaduct_trunk(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;
	__u32 *slot = bpf_map_lookup_elem(&trunk_slots, &ifindex);

	return slot ? bpf_redirect_map(&xsks, *slot, XDP_DROP) : XDP_DROP;
}
