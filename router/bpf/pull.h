// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// What another node sends, as far as it is settled: the outer headers, who may send what is inside and
// to whom it goes, and what changes in it. The same for XDP and tc.
#ifndef VIADUCT_PULL_H
#define VIADUCT_PULL_H

#include "settled.h"

// Bytes of the outer header that are looked at in front of the inner Ethernet header.
#define VXLAN_BEHIND_UDP (sizeof(struct udphdr) + sizeof(struct vxlan))

// What was read stands here still, after a change that made all pointers void.
static __always_inline bool has_header(void *ip, void *end, const struct inner *in)
{
	if (in->v6)
		return ip + sizeof(struct ipv6hdr) <= end;
	return ip + sizeof(struct iphdr) <= end;
}

static __always_inline __u16 kind_of(const struct inner *in)
{
	return in->v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
}

// The change of the sum over a packet whose IPv6 header has another value in one of its words. A NIC or
// the kernel may have made that sum (CHECKSUM_COMPLETE). IPv4's own checksum makes up for what changes
// in its header.
static __always_inline __u32 changed_v6(__u16 before, __u16 after)
{
	return (__u32)(__u16)~before + after;
}

// One hop less: the change of the packet's sum. The header is known to be there, and to have one.
static __always_inline __u32 take_hop(const struct inner *in, void *ip)
{
	struct ipv6hdr *ip6 = ip;
	struct iphdr *ip4 = ip;
	__u16 before;

	if (in->v6) {
		before = *(__u16 *)&ip6->nexthdr;
		ip6->hop_limit--;
		return changed_v6(before, *(__u16 *)&ip6->nexthdr);
	}
	before = *(__u16 *)&ip4->ttl;
	ip4->ttl--;
	change_v4(ip4, before, *(__u16 *)&ip4->ttl);
	return 0;
}

// What the outer headers of a tunnel packet say.
struct outer {
	struct address source;
	struct vtep end;
	__u32 vni;
	__u32 length; // of the inner frame, as UDP has it
	__u8 tos;
	bool v6;
	bool summed;
};

static __always_inline bool read_vxlan(struct udphdr *udp, void *end, __u32 left, struct outer *outer)
{
	struct vxlan *vxlan = (void *)(udp + 1);
	__u32 length;

	// Reserved bits are other protocols' (encap/src/vxlan.rs).
	if ((void *)(vxlan + 1) > end || vxlan->flags != VXLAN_VNI_VALID || vxlan->reserved[0] ||
	    vxlan->reserved[1] || vxlan->reserved[2] || vxlan->reserved2)
		return false;
	length = bpf_ntohs(udp->len);
	// What stands behind the datagram is for those who look closer.
	if (length != left || length < VXLAN_BEHIND_UDP + ETH_HLEN)
		return false;
	outer->length = length - VXLAN_BEHIND_UDP;
	outer->end.port = udp->dest;
	outer->summed = udp->check;
	outer->vni = (__u32)vxlan->vni[0] << 16 | (__u32)vxlan->vni[1] << 8 | vxlan->vni[2];
	return true;
}

static __always_inline bool read_outer_v4(struct iphdr *ip, void *end, struct outer *outer)
{
	if ((void *)(ip + 1) > end || *(__u8 *)ip != PLAIN_V4 || ip->protocol != IPPROTO_UDP ||
	    (ip->frag_off & bpf_htons(MORE_OR_OFFSET)) || fold(sum_v4(ip)) != 0xffff ||
	    bpf_ntohs(ip->tot_len) < sizeof(*ip))
		return false;
	outer->tos = ip->tos;
	map_v4(outer->source.bytes, &ip->saddr);
	map_v4(outer->end.address, &ip->daddr);
	return read_vxlan((void *)(ip + 1), end, bpf_ntohs(ip->tot_len) - sizeof(*ip), outer);
}

static __always_inline bool read_outer_v6(struct ipv6hdr *ip, void *end, struct outer *outer)
{
	if ((void *)(ip + 1) > end || ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
		return false;
	outer->v6 = true;
	outer->tos = tos_v6(ip);
	__builtin_memcpy(&outer->source, &ip->saddr, 16);
	__builtin_memcpy(outer->end.address, &ip->daddr, 16);
	return read_vxlan((void *)(ip + 1), end, bpf_ntohs(ip->payload_len), outer);
}

// The ECN field of the inner header when it leaves the tunnel (RFC 6040, figure 4).
// False: the packet has to be dropped, which is for workers to say.
static __always_inline bool congestion(__u8 outer, __u8 inner, __u8 *now)
{
	*now = inner & ECN;
	if (!(inner & ECN))
		return (outer & ECN) != ECN;
	if ((inner & ECN) != ECN && ((outer & ECN) == ECN || (outer & ECN) == ECT_1))
		*now = outer & ECN;
	return true;
}

// Notes congestion in the inner header, as it leaves the tunnel: the change of the packet's sum.
static __always_inline __u32 mark(const struct inner *in, void *ip, __u8 ecn)
{
	__u8 tos = (in->tos & ~ECN) | ecn;
	struct ipv6hdr *ip6 = ip;
	struct iphdr *ip4 = ip;
	__u16 before = *(__u16 *)ip;

	if (tos == in->tos)
		return 0;
	if (in->v6) {
		*(__be16 *)ip6 = (*(__be16 *)ip6 & bpf_htons(0xf00f)) | bpf_htons((__u16)tos << 4);
		return changed_v6(before, *(__u16 *)ip);
	}
	ip4->tos = tos;
	change_v4(ip4, before, *(__u16 *)ip);
	return 0;
}

// A tunnel packet that may be delivered.
struct arrived {
	struct outer outer;
	struct inner in;
	struct numbered to;
	struct ethhdr *frame; // the inner one
	__u32 front; // bytes to be taken off
	__u8 ecn; // of the inner header, from now on
};

// Whether the sender may send this, and to whom it goes.
static __always_inline bool accept(struct arrived *it, void *end)
{
	struct network *network = bpf_map_lookup_elem(&vnis, &it->outer.vni);
	struct ethhdr *eth = it->frame;
	struct where from, goal;
	struct next_hop *origin;

	if (!network || network->udp_port != it->outer.end.port ||
	    !bpf_map_lookup_elem(&vteps, &it->outer.end))
		return false;
	if (!same_mac(eth->h_dest, it->outer.v6 ? network->vtep_mac6 : network->vtep_mac) ||
	    (eth->h_dest[0] & 1) || !read_inner(eth, end, &it->in) ||
	    it->outer.length != sizeof(*eth) + it->in.length || it->in.hops <= 1)
		return false;
	from = where_is(network->id, it->outer.vni, &it->in.source);
	origin = bpf_map_lookup_elem(&next_hops, &from.id);
	if (from.kind != THERE || !origin || !origin->present ||
	    !same_address(origin->vtep.bytes, it->outer.source.bytes))
		return false;
	goal = where_is(network->id, it->outer.vni, &it->in.destination);
	it->to = port_of(goal.id);
	return goal.kind == HERE && it->to.port;
}

// Reads a frame of so many bytes from the underlay. False: it is no settled one.
static __always_inline bool read_arrived(void *data, void *end, __u32 length, struct arrived *it)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		it->front = HEADER_V4 - ETH_HLEN;
		if (!read_outer_v4((void *)(eth + 1), end, &it->outer))
			return false;
		it->frame = data + HEADER_V4 - ETH_HLEN;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		it->front = HEADER_V6 - ETH_HLEN;
		if (!read_outer_v6((void *)(eth + 1), end, &it->outer))
			return false;
		it->frame = data + HEADER_V6 - ETH_HLEN;
	} else {
		return false;
	}
	return (void *)(it->frame + 1) <= end && length == it->front + it->outer.length &&
	       accept(it, end) && congestion(it->outer.tos, it->in.tos, &it->ecn);
}

#endif
