// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// Hooks in tc. The first tier: what is settled is checked, rewritten and sent on where it arrives. It
// drops nothing but what it has begun to rewrite and cannot end. Everything else is handed over
// untouched, and the rules of the pinholes say to whom: to a worker by the trunk, or to the kernel.
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#include "alone.h"
#include "pull.h"
#include "rules.h"
#include "settled.h"
#include "trunk.h"

// The first one that is configured, which the kernel carries, too.
#define DEFAULT_NETWORK 0
// For how long a packet may be on its way through the kernel's VXLAN device: queues of one softirq.
#define ON_THE_WAY_NS 4000000

// The kernel's VXLAN device over IPv4 (0) and over IPv6 (1).
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} overlays SEC(".maps");

// When a merged packet of a flow came last.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS_APART);
	__type(key, __u32);
	__type(value, __u64);
} merged_at SEC(".maps");

// TCX_NEXT, and with clsact TC_ACT_UNSPEC: the next program's, or the stack's.
#define HAND_OVER (-1)
// A packet that the kernel's VXLAN device takes apart, and the hook there delivers.
#define BY_OVERLAY (-2)
#define OVERLAY_MARK 0x76647578
// As many bytes as the rules look at: a tunnel packet's headers, up to the inner transport's.
#define HEADERS 160
#define PUSH (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | \
	      BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | \
	      BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN))
#define LONGEST_INNER (0xffff - HEADER_V6)
// Of kernel 6.4 (include/uapi/linux/bpf.h); headers of user space may be older.
#define DECAP_L3_IPV4 (1ULL << 7)
#define DECAP_L3_IPV6 (1ULL << 8)

// The longest IP packet on the wire that comes of this one: of its segments, where the kernel or the
// device is still to cut it. How many they are is noted: a change of the packet's room forgets it.
static __always_inline __u32 on_the_wire(struct __sk_buff *skb, void *ip, void *end, struct inner *in)
{
	__u8 *offset = ip + in->header + 12;
	__u32 headers = in->header + UDP_LEN;

	in->packets = 1;
	in->bytes = in->length;
	if (!skb->gso_size)
		return in->length;
	if (in->protocol == IPPROTO_TCP) {
		if ((void *)(offset + 1) > end)
			return in->length;
		headers = in->header + (*offset >> 4) * 4;
	}
	if (in->length > headers + skb->gso_size) {
		in->packets = (in->length - headers - 1) / skb->gso_size + 1;
		in->bytes += (in->packets - 1) * headers;
	}
	return headers + skb->gso_size;
}

// A sum over the whole packet, which a NIC or the kernel may have made, follows what has changed in it.
static __always_inline void sum_follows(struct __sk_buff *skb, __u32 change)
{
	if (change)
		bpf_csum_update(skb, change);
}

// Whether a port takes packets from hooks, of so many bytes at most.
static __always_inline bool takes(struct __sk_buff *skb, const struct port *port, __u32 wire,
				  enum carrying how)
{
	return port && port->to && wire <= port->mtu &&
	       (how == LED || is_there(skb, port->ifindex));
}

// Sends a packet to a pod of this node.
static __always_inline int deliver(struct __sk_buff *skb, struct inner *in, __u32 from,
				   const struct numbered *to)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if (!has_header(eth + 1, end, in))
		return TC_ACT_SHOT;
	sum_follows(skb, take_hop(in, eth + 1));
	__builtin_memcpy(eth->h_dest, to->port->mac, 6);
	__builtin_memcpy(eth->h_source, to->port->gateway_mac, 6);
	count(from, RECEIVED, in);
	count(to->id, SENT, in);
	// From the underlay with another node's VTEP MAC, it was nobody's.
	bpf_skb_change_type(skb, PACKET_HOST);
	return to_pod(to->port);
}

// What differs from packet to packet of an outer header over IPv4 (encap/src/tunnel.rs).
static __always_inline void patch_v4(void *header, const struct inner *in, __u8 tos, __u16 port)
{
	struct iphdr *ip = header + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 length = in->length + HEADER_V4 - ETH_HLEN;

	ip->tos = tos;
	ip->tot_len = bpf_htons(length);
	ip->check = 0;
	ip->check = ~fold(sum_v4(ip));
	udp->source = bpf_htons(port);
	udp->len = bpf_htons(length - sizeof(*ip));
}

// Over IPv6, whose flow label carries the flow's hash, too (RFC 6438).
static __always_inline void patch_v6(void *header, const struct inner *in, __u8 tos, __u16 port)
{
	struct ipv6hdr *ip = header + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 length = in->length + HEADER_V6 - ETH_HLEN - sizeof(*ip);

	*(__be32 *)ip = bpf_htonl(0x60000000 | (__u32)tos << 20 | port);
	ip->payload_len = bpf_htons(length);
	udp->source = bpf_htons(port);
	udp->len = bpf_htons(length);
}

// Puts an outer header in front of the inner packet. Its size and version are constants here.
static __always_inline int encapsulate(struct __sk_buff *skb, struct inner *in,
				       const struct way *way, __u8 tos, __u16 port, bool over_v6)
{
	const __u32 length = over_v6 ? HEADER_V6 : HEADER_V4;
	__u64 flags = PUSH | (over_v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	void *data, *end;

	if (bpf_skb_adjust_room(skb, length - ETH_HLEN, BPF_ADJ_ROOM_MAC, flags))
		return HAND_OVER;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (!has_header(data + length, end, in))
		return TC_ACT_SHOT;
	__builtin_memcpy(data, way->header, length);
	*(__be16 *)(data + length - sizeof(__be16)) = kind_of(in);
	if (over_v6)
		patch_v6(data, in, tos, port);
	else
		patch_v4(data, in, tos, port);
	sum_follows(skb, take_hop(in, data + length));
	return TC_ACT_OK;
}

// Has the kernel's VXLAN device put the outer header in front, with a checksum over the whole packet:
// its entries lead to the node whose MAC is the destination.
static __always_inline int over_overlay(struct __sk_buff *skb, struct inner *in,
					const struct numbered *from, const struct way *way)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 family = way->length == HEADER_V6;
	struct ethhdr *eth = data;
	__u32 *device;

	device = bpf_map_lookup_elem(&overlays, &family);
	if (from->port->network != DEFAULT_NETWORK || !device || !has_header(eth + 1, end, in))
		return HAND_OVER;
	if (family)
		__builtin_memcpy(eth, way->header + HEADER_V6 - ETH_HLEN, 2 * ETH_ALEN);
	else
		__builtin_memcpy(eth, way->header + HEADER_V4 - ETH_HLEN, 2 * ETH_ALEN);
	sum_follows(skb, take_hop(in, eth + 1));
	count(from->id, RECEIVED, in);
	count(0, SENT, in);
	return bpf_redirect(*device, 0);
}

// Sends a pod's packet to another node.
static __always_inline int to_node(struct __sk_buff *skb, struct inner *in,
				   const struct numbered *from, __u32 id, __u32 wire,
				   enum carrying how)
{
	__u32 underlay = 0, hash = flow_hash(in);
	struct next_hop *hop;
	struct port *out;
	struct way *way;
	__u8 tos;
	int done;

	hop = bpf_map_lookup_elem(&next_hops, &id);
	out = bpf_map_lookup_elem(&ports, &underlay);
	// The outer header has to have room for its length, too.
	if (!hop || !out || !out->ifindex || in->length > LONGEST_INNER)
		return HAND_OVER;
	way = way_of(hop, id, hash);
	if (!way || wire > way->room)
		return HAND_OVER;
	// The kernel's VXLAN device would choose among several ways by addresses alone.
	if (way->summed)
		return hop->ways == 1 ? over_overlay(skb, in, from, way) : HAND_OVER;
	if (how == ALONE && !leads_out(skb, way, out->ifindex, wire + way->length - ETH_HLEN))
		return HAND_OVER;
	tos = way->copies_dscp ? in->tos : way->tos | (in->tos & ECN);
	if (way->length == HEADER_V4)
		done = encapsulate(skb, in, way, tos, source_port(hash), false);
	else if (way->length == HEADER_V6)
		done = encapsulate(skb, in, way, tos, source_port(hash), true);
	else
		return HAND_OVER;
	if (done != TC_ACT_OK)
		return done;
	count(from->id, RECEIVED, in);
	count(0, SENT, in);
	return how == ALONE ? bpf_redirect_neigh(out->ifindex, 0, 0, 0) :
			      bpf_redirect(out->ifindex, 0);
}

static __always_inline int in_tc(enum verdict verdict)
{
	if (verdict == GIVEN)
		return TC_ACT_REDIRECT;
	return verdict == DROP ? TC_ACT_SHOT : HAND_OVER;
}

static __always_inline struct view view_of_skb(struct __sk_buff *skb, __u32 ifindex)
{
	return (struct view){
		.ctx = skb,
		.data = (void *)(long)skb->data,
		.end = (void *)(long)skb->data_end,
		.ifindex = ifindex,
	};
}

// Carries what a pod has sent, if that is settled.
static __always_inline int carry_from_pod(struct __sk_buff *skb, __u32 ifindex, enum carrying how)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct numbered from = port_of_link(ifindex), to;
	struct ethhdr *eth = data;
	struct where owner, goal;
	struct inner in = {};
	__u32 wire;

	// A tag beside the packet is lost by a redirect, or lands on the outer frame.
	if (!from.port || !from.port->from || skb->vlan_present || (void *)(eth + 1) > end)
		return HAND_OVER;
	if (!same_mac(eth->h_source, from.port->mac) ||
	    !same_mac(eth->h_dest, from.port->gateway_mac) || !read_inner(eth, end, &in) ||
	    skb->len != sizeof(*eth) + in.length || in.hops <= 1)
		return HAND_OVER;
	owner = where_is(from.port->network, from.port->vni, &in.source);
	if (owner.kind != HERE || owner.id != from.id)
		return HAND_OVER;
	wire = on_the_wire(skb, eth + 1, end, &in);
	goal = where_is(from.port->network, from.port->vni, &in.destination);
	if (goal.kind == THERE && goal.in_cluster)
		return to_node(skb, &in, &from, goal.id, wire, how);
	to = port_of(goal.id);
	if (goal.kind != HERE || !takes(skb, to.port, wire, how))
		return HAND_OVER;
	return deliver(skb, &in, from.id, &to);
}

// Takes a priority tag off that is beside the packet: it names no VLAN (VID 0). False: the packet is
// in a VLAN.
static __always_inline bool untag(struct __sk_buff *skb)
{
#pragma unroll
	for (int i = 0; i < MAX_TAGS && skb->vlan_present; i++) {
		if ((skb->vlan_tci & VLAN_ID) || bpf_skb_vlan_pop(skb))
			return false;
	}
	return !skb->vlan_present;
}

// As many bytes as the rules read are in one piece then, if there are so many.
static __always_inline void pull(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + HEADERS > end)
		bpf_skb_pull_data(skb, skb->len < HEADERS ? skb->len : HEADERS);
}

// Host end of a pod's veth.
SEC("classifier")
int viaduct_tc_pod(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	enum carrying how = carrying();
	int carried = HAND_OVER;
	struct device *dev;
	struct view packet;

	if (how == ALONE || (how == LED && !is_at_worker(skb, ifindex)))
		carried = carry_from_pod(skb, ifindex, how);
	if (carried != HAND_OVER)
		return carried;
	dev = bpf_map_lookup_elem(&devices, &ifindex);
	if (!dev)
		return HAND_OVER;
	if (!untag(skb))
		return in_tc(drop(VLAN_TAGGED));
	pull(skb);
	packet = view_of_skb(skb, ifindex);
	return in_tc(from_pod(&packet, dev, to_trunk));
}

// Whether the kernel's VXLAN device has to take this packet apart: it is merged, and on kernels before
// DECAP_L4_UDP a hook cannot clear what the tunnel has left in it; or one of its flow was a moment
// ago, and may still be on the way there.
static __always_inline bool needs_overlay(struct __sk_buff *skb, const struct inner *in)
{
	__u32 flow = flow_hash(in) % FLOWS_APART;
	__u64 now = bpf_ktime_get_coarse_ns();
	__u64 *last = bpf_map_lookup_elem(&merged_at, &flow);

	if (!last)
		return true;
	if (skb->gso_size) {
		*last = now;
		return true;
	}
	return now - *last < ON_THE_WAY_NS;
}

// Leaves a packet that may be delivered to the kernel's VXLAN device, if there is one with a hook.
static __always_inline int by_overlay(struct __sk_buff *skb, const struct outer *outer, __u32 network)
{
	__u32 family = outer->v6;

	if (network != DEFAULT_NETWORK || !bpf_map_lookup_elem(&overlays, &family))
		return HAND_OVER;
	skb->mark = OVERLAY_MARK;
	return BY_OVERLAY;
}

// Takes the outer headers off and delivers.
static __always_inline int decapsulate(struct __sk_buff *skb, struct inner *in, __s32 length,
				       __u8 ecn, const struct numbered *to)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	void *data, *end;

	flags |= in->v6 ? DECAP_L3_IPV6 : DECAP_L3_IPV4;
	if (bpf_skb_adjust_room(skb, -length, BPF_ADJ_ROOM_MAC, flags))
		return HAND_OVER;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (!has_header(data + sizeof(struct ethhdr), end, in))
		return TC_ACT_SHOT;
	((struct ethhdr *)data)->h_proto = kind_of(in);
	sum_follows(skb, mark(in, data + sizeof(struct ethhdr), ecn));
	return deliver(skb, in, 0, to);
}

// Carries what another node has sent, if that is settled.
static __always_inline int carry_from_underlay(struct __sk_buff *skb, enum carrying how)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct arrived it = {};
	__u32 wire;

	if (!read_arrived(data, end, skb->len, &it))
		return HAND_OVER;
	wire = on_the_wire(skb, it.frame + 1, end, &it.in);
	if (!takes(skb, it.to.port, wire, how))
		return HAND_OVER;
	// Whether a checksum is right is for the kernel to see.
	if (it.outer.summed || needs_overlay(skb, &it.in))
		return by_overlay(skb, &it.outer, it.to.port->network);
	return decapsulate(skb, &it.in, it.front, it.ecn, &it.to);
}

// The underlay.
SEC("classifier")
int viaduct_tc_underlay(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct device *dev = bpf_map_lookup_elem(&devices, &ifindex);
	enum carrying how = carrying();
	int carried = HAND_OVER;
	struct view packet;

	// A VLAN of this interface is another network, which the kernel has a device for, or nobody.
	if (!untag(skb))
		return HAND_OVER;
	pull(skb);
	packet = view_of_skb(skb, ifindex);
	if (packet.data + ETH_HLEN > packet.end)
		return HAND_OVER;
	if ((how == ALONE || (how == LED && !is_at_worker(skb, ifindex))) &&
	    !(dev && for_another_mac(packet.data, dev)))
		carried = carry_from_underlay(skb, how);
	if (carried == BY_OVERLAY)
		return HAND_OVER;
	if (carried != HAND_OVER || !dev)
		return carried;
	packet = view_of_skb(skb, ifindex);
	return in_tc(from_underlay(&packet, to_trunk));
}

// The kernel's VXLAN device: delivers what the underlay's hook has checked.
SEC("classifier")
int viaduct_tc_overlay(struct __sk_buff *skb)
{
	struct place place = { .network = DEFAULT_NETWORK };
	void *data, *end;
	struct inner in = {};
	struct numbered to;
	struct ethhdr *eth;
	__u32 *id;

	if (skb->mark != OVERLAY_MARK)
		return HAND_OVER;
	skb->mark = 0;
	pull(skb);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	eth = data;
	if ((void *)(eth + 1) > end || !read_inner(eth, end, &in) || in.hops <= 1)
		return HAND_OVER;
	place.address = in.destination;
	id = bpf_map_lookup_elem(&locals, &place);
	if (!id)
		return HAND_OVER;
	to = port_of(*id);
	if (!takes(skb, to.port, on_the_wire(skb, eth + 1, end, &in), carrying()))
		return HAND_OVER;
	return deliver(skb, &in, 0, &to);
}

// The hooks' end of a trunk: what a worker sends.
SEC("classifier")
int viaduct_tc_trunk(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct trunk_mac to;
	struct port *port;
	__u32 id;

	if ((void *)(eth + 1) > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(&to, eth->h_source, sizeof(to));
	// The kernel greets its neighbours when the worker's end comes up.
	if (!is_of_worker(&to))
		return TC_ACT_SHOT;
	id = bpf_ntohs(to.port);
	port = bpf_map_lookup_elem(&ports, &id);
	// It has gone in the meantime.
	if (!port || !port->ifindex)
		return in_tc(drop(PORT_GONE));
	__builtin_memcpy(eth->h_source, port->gateway_mac, ETH_ALEN);
	if (!id)
		return bpf_redirect(port->ifindex, 0);
	// A frame for another station, as far as the trunk could see.
	bpf_skb_change_type(skb, PACKET_HOST);
	return to_pod(port);
}
