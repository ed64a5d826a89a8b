// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// The rules of the pinholes, for programs of XDP and of tc: what is the workers', what is left to the
// kernel, and what neither gets because it is forged.
#ifndef VIADUCT_RULES_H
#define VIADUCT_RULES_H

#include "packet.h"

// Set by the loader before the programs are verified.
volatile const __u64 heartbeat_timeout_ns = 500000000;
// What is the workers' is dropped when they are gone, not left to the kernel.
volatile const __u32 fail_closed = 0;

#define VXLAN_LEN sizeof(struct vxlan)
#define MAX_WORKERS 64
#define IP_OFFSET 0x1fff
#define VLAN_ID 0x0fff
// More tags than this on one frame are refused.
#define MAX_TAGS 2

// One attached device. Queue q belongs to worker q mod workers; its socket is
// in slot base + q.
struct device {
	__u32 base;
	__u32 queues;
	__u32 workers;
	__u32 vni; // of a pod's network; not used on the underlay
	__u8 mac[6]; // the pod's; on the underlay the interface's own, zero while it is not known
	__u8 no_slow_path; // of a network that the kernel does not carry
	__u8 native_veth;  // a veth with native XDP
	__u16 port;
	__u16 zero;
};

// IPv4 addresses are mapped (::ffff:a.b.c.d), here and below.
struct vtep {
	__u8 address[16];
	__u16 port; // network order
	__u16 zero;
};

struct pod {
	__u32 vni;
	__u8 address[16];
};

struct source {
	__u32 ifindex;
	__u8 address[16];
};

// One cache line a worker, which alone writes it.
struct beat {
	__u64 at; // CLOCK_MONOTONIC in nanoseconds
	__u32 round; // of its trunk (trunk.h)
	__u32 zero;
	__u64 pad[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, struct beat);
} heartbeat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct vtep);
	__type(value, __u32);
} vteps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct pod);
	__type(value, __u32);
} pods SEC(".maps");

// Value 1: to the workers. Value 0: the host's own address, to the kernel.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct prefix);
	__type(value, __u32);
} cluster SEC(".maps");

// Our networks. Value 1: the kernel carries it, too.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} networks SEC(".maps");

// Which node an inner source belongs to.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct prefix);
	__type(value, struct address);
} origins SEC(".maps");

// What each pod may send from.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct source);
	__type(value, __u32);
} sources SEC(".maps");

// Where tunnels end, here and at other nodes: pods send nothing there.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct vtep);
	__type(value, __u32);
} nodes SEC(".maps");

enum outcome {
	REDIRECTED,
	PASSED,
	STALE,
	CLOSED,
	SPOOFED,
	UNKNOWN_VTEP,
	TUNNEL_FROM_POD,
	NO_SLOW_PATH,
	MULTICAST,
	VLAN_TAGGED,
	MALFORMED,
	FOREIGN_MAC,
	PORT_GONE,
	OUTCOMES
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

static __always_inline void note(__u32 outcome)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);
	if (n)
		(*n)++;
}

// A packet as a program sees it: the same for XDP and tc, whose context it is.
struct view {
	void *ctx;
	void *data, *end;
	__u32 ifindex;
};

// What is to be done with it.
enum verdict {
	PASS,  // it is the kernel's
	DROP,
	GIVEN, // it is a worker's, and on its way there
};

static __always_inline enum verdict pass(void)
{
	note(PASSED);
	return PASS;
}

static __always_inline enum verdict drop(__u32 outcome)
{
	note(outcome);
	return DROP;
}

// Nobody is there to take what the workers should have.
static __always_inline enum verdict without_worker(void)
{
	note(fail_closed ? CLOSED : STALE);
	return fail_closed ? DROP : PASS;
}

static __always_inline const struct beat *beat_of(__u32 worker)
{
	return bpf_map_lookup_elem(&heartbeat, &worker);
}

// Whether a worker has shown life of late.
static __always_inline bool is_fresh(const struct beat *beat)
{
	// The clock of the last tick, milliseconds old: exact enough, and much cheaper to read.
	// Signed: most beats are newer.
	return beat && (__s64)(bpf_ktime_get_coarse_ns() - beat->at) <= (__s64)heartbeat_timeout_ns;
}

static __always_inline bool lives(__u32 worker)
{
	return is_fresh(beat_of(worker));
}

// How a program gives a packet to a worker: GIVEN, DROP where there is no place for it, or PASS where
// nobody is there to take it.
typedef enum verdict (*give_fn)(const struct view *packet, const struct device *dev);

static __always_inline bool is_tag(__be16 kind)
{
	return kind == bpf_htons(ETH_P_8021Q) || kind == bpf_htons(ETH_P_8021AD);
}

// The UDP header behind an outer IP header without options or extensions; what has any, or is a
// fragment, is the kernel's. The VTEPs' addresses are noted.
static __always_inline struct udphdr *outer_udp(struct ethhdr *eth, void *end, struct vtep *vtep,
						__u8 *from)
{
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->version != 4 ||
		    ip->protocol != IPPROTO_UDP || (ip->frag_off & bpf_htons(MORE_OR_OFFSET)))
			return 0;
		map_v4(vtep->address, &ip->daddr);
		map_v4(from, &ip->saddr);
		return (void *)(ip + 1);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
			return 0;
		__builtin_memcpy(vtep->address, &ip->daddr, 16);
		__builtin_memcpy(from, &ip->saddr, 16);
		return (void *)(ip + 1);
	}
	return 0;
}

// A frame for another station, which a switch floods or a promiscuous interface sees. The kernel
// drops what is not for the interface's own MAC (PACKET_OTHERHOST, eth_type_trans), so it is left to
// the kernel. Nothing is lost when the MAC has just changed and the map does not have it yet.
static __always_inline bool for_another_mac(const struct ethhdr *eth, const struct device *dev)
{
	__u8 unknown[6] = {};

	return !same_mac(eth->h_dest, dev->mac) && !same_mac(dev->mac, unknown);
}

// What a pod sends to the kernel, as far as it matters here.
struct sent {
	struct source source;
	struct address to;
	__u16 port; // UDP, network order
	__u8 type; // neighbour discovery's, or 0
	bool v6;
};

static __always_inline void read_sent_v4(struct iphdr *ip, void *end, struct sent *sent)
{
	struct udphdr *udp = (void *)ip + ip->ihl * 4;

	map_v4(sent->source.address, &ip->saddr);
	map_v4(sent->to.bytes, &ip->daddr);
	// What has no port here shows it where the kernel has put the fragments together.
	if (ip->protocol == IPPROTO_UDP && ip->ihl >= 5 && (void *)(udp + 1) <= end &&
	    !(ip->frag_off & bpf_htons(IP_OFFSET)))
		sent->port = udp->dest;
}

static __always_inline void read_sent_v6(struct ipv6hdr *ip, void *end, struct sent *sent)
{
	struct udphdr *udp = (void *)(ip + 1);

	sent->v6 = true;
	__builtin_memcpy(sent->source.address, &ip->saddr, 16);
	__builtin_memcpy(sent->to.bytes, &ip->daddr, 16);
	if (ip->nexthdr == IPPROTO_UDP && (void *)(udp + 1) <= end)
		sent->port = udp->dest;
}

static __always_inline bool link_local(const __u8 *address)
{
	return address[0] == 0xfe && (address[1] & 0xc0) == 0x80;
}

// ff02::/16 with only these last three bytes and the one before them, that is ff02::1,
// ff02::2 or ff02::1:ffxx:xxxx.
static __always_inline bool link_group(const __u8 *to, __u8 before, __u8 byte13, __u8 last)
{
	__u8 zero = 0;

	for (int i = 2; i < 11; i++)
		zero |= to[i];
	if (to[0] != 0xff || to[1] != 0x02 || zero || to[11] != before || to[12] != byte13)
		return false;
	// Behind 0xff stand the last bytes of the address that is asked for.
	return byte13 == 0xff || (!to[13] && !to[14] && to[15] == last);
}

// Where neighbour discovery may go: to an address of this link, or to the group that RFC 4861
// names for its type (sections 4.1, 4.3 and 4.4). Routers and redirects are refused wherever they go.
static __always_inline bool stays_on_link(__u8 type, const __u8 *to)
{
	if (type == ROUTER_ADVERTISEMENT || type == REDIRECT || link_local(to))
		return true;
	if (type == ROUTER_SOLICITATION)
		return link_group(to, 0, 0, 2);
	if (type == NEIGHBOUR_SOLICITATION)
		return link_group(to, 1, 0xff, 0);
	return link_group(to, 0, 0, 1);
}

// The type of neighbour discovery (RFC 4861: 133-137, hop limit 255, right behind the IPv6 header),
// or 0. What has another destination than one of this link is no neighbour discovery: the kernel
// would forward it. A solicitation of the very address that it is sent to is how a neighbour is
// probed (section 7.3.1); in a network that the kernel carries, it may be one that it answers for.
static __always_inline __u8 discovery(struct ipv6hdr *ip, void *end, bool carried)
{
	__u8 *icmp = (void *)(ip + 1), *target = icmp + 8;

	if (ip->nexthdr != ICMPV6 || ip->hop_limit != 255 || (void *)(icmp + 1) > end ||
	    *icmp < ROUTER_SOLICITATION || *icmp > REDIRECT)
		return 0;
	if (stays_on_link(*icmp, ip->daddr.s6_addr))
		return *icmp;
	if (carried && *icmp == NEIGHBOUR_SOLICITATION && (void *)(target + 16) <= end &&
	    same_address(target, ip->daddr.s6_addr))
		return *icmp;
	return 0;
}

// IPv6 without one of the pod's addresses: link-local, or unspecified while an address is new
// (RFC 4862), and for nobody beyond the link.
static __always_inline bool on_link(const struct sent *sent)
{
	const __u8 *from = sent->source.address, *to = sent->to.bytes;
	__u8 nothing[16] = {};

	if (!sent->v6 || !(link_local(from) || same_address(from, nothing)))
		return false;
	return link_local(to) || to[0] == 0xff;
}

// IPv4's are 224.0.0.0/4; 255.255.255.255 is to all on the link.
static __always_inline bool multicast(const struct sent *sent)
{
	const __u8 *to = sent->to.bytes;

	if (sent->v6)
		return to[0] == 0xff;
	return (to[12] & 0xf0) == 0xe0 || (to[12] & to[13] & to[14] & to[15]) == 0xff;
}

// What a pod sends to the kernel, and may. False: it is dropped, and counted.
static __always_inline bool may_pass(const struct sent *sent, const struct device *dev,
				     const struct ethhdr *eth)
{
	struct vtep node = { .port = sent->port };

	if (!same_mac(eth->h_source, dev->mac) ||
	    sent->type == ROUTER_ADVERTISEMENT || sent->type == REDIRECT ||
	    (!on_link(sent) && !bpf_map_lookup_elem(&sources, &sent->source))) {
		note(SPOOFED);
		return false;
	}
	if (!sent->type && multicast(sent)) {
		note(MULTICAST);
		return false;
	}
	if (dev->no_slow_path && !sent->type) {
		note(NO_SLOW_PATH);
		return false;
	}
	__builtin_memcpy(node.address, sent->to.bytes, 16);
	if (sent->port && bpf_map_lookup_elem(&nodes, &node)) {
		note(TUNNEL_FROM_POD);
		return false;
	}
	return true;
}

// The network layer's header behind an Ethernet header and priority tags, which name no VLAN (VID 0)
// and which the kernel takes off. 0: the frame is in a VLAN, or its tags are cut short.
static __always_inline void *network_header(struct ethhdr *eth, void *end, __be16 *kind)
{
	__be16 *tag = (void *)(eth + 1);

	*kind = eth->h_proto;
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		if (!is_tag(*kind))
			return tag;
		if ((void *)(tag + 2) > end || (tag[0] & bpf_htons(VLAN_ID)))
			return 0;
		*kind = tag[1];
		tag += 2;
	}
	return is_tag(*kind) ? 0 : tag;
}

// From the underlay: VXLAN to one of our VTEPs for a local pod is the workers'.
static __always_inline enum verdict from_underlay(const struct view *packet, give_fn give)
{
	struct prefix from = { .length = 32 + 128 };
	struct ethhdr *eth = packet->data, *inner;
	void *end = packet->end;
	__u32 vni, *carried;
	struct vtep vtep = {};
	struct pod pod = {};
	struct address outer, *origin;
	struct device *dev;
	enum verdict given;
	struct udphdr *udp;
	bool local;
	__u8 *vxlan;

	if ((void *)(eth + 1) > end)
		return pass();
	udp = outer_udp(eth, end, &vtep, outer.bytes);
	if (!udp)
		return pass();
	vxlan = (void *)(udp + 1);
	inner = (void *)(vxlan + VXLAN_LEN);
	if ((void *)(inner + 1) > end)
		return pass();
	vtep.port = udp->dest;
	if (!bpf_map_lookup_elem(&vteps, &vtep))
		return pass();
	pod.vni = (__u32)vxlan[4] << 16 | (__u32)vxlan[5] << 8 | vxlan[6];
	carried = bpf_map_lookup_elem(&networks, &pod.vni);
	// Somebody else's tunnel through the same port.
	if (!carried)
		return pass();
	dev = bpf_map_lookup_elem(&devices, &packet->ifindex);
	if (!dev)
		return pass();
	if (for_another_mac(eth, dev)) {
		note(FOREIGN_MAC);
		return PASS;
	}

	if (inner->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip4 = (void *)(inner + 1);
		if ((void *)(ip4 + 1) > end)
			return drop(MALFORMED);
		map_v4(pod.address, &ip4->daddr);
		map_v4(from.address, &ip4->saddr);
	} else if (inner->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(inner + 1);
		if ((void *)(ip6 + 1) > end)
			return drop(MALFORMED);
		__builtin_memcpy(pod.address, &ip6->daddr, 16);
		__builtin_memcpy(from.address, &ip6->saddr, 16);
	} else {
		// Nothing but IP has a way into the overlay.
		return drop(is_tag(inner->h_proto) ? VLAN_TAGGED : MALFORMED);
	}
	local = bpf_map_lookup_elem(&pods, &pod);
	given = local ? give(packet, dev) : PASS;
	if (given != PASS)
		return given;
	if (!*carried)
		return drop(NO_SLOW_PATH);
	vni = bpf_htonl(pod.vni);
	__builtin_memcpy(from.network, &vni, 4);
	origin = bpf_map_lookup_elem(&origins, &from);
	if (!origin || !same_address(origin->bytes, outer.bytes))
		return drop(UNKNOWN_VTEP);
	return local ? without_worker() : pass();
}

// From a pod: packets to the cluster's prefixes are the workers'. What decides about those comes
// first, and the rest is read of what the kernel gets only.
static __always_inline enum verdict from_pod(const struct view *packet, const struct device *dev,
					     give_fn give)
{
	struct prefix to = { .length = 32 + 128 };
	struct ethhdr *eth = packet->data;
	__u32 *action = 0, vni;
	void *end = packet->end;
	struct sent sent = {};
	enum verdict given;
	struct ipv6hdr *ip6;
	struct iphdr *ip4;
	__u8 type = 0;
	__be16 kind;

	if ((void *)(eth + 1) > end)
		return pass();
	ip4 = network_header(eth, end, &kind);
	ip6 = (void *)ip4;
	if (!ip4)
		return drop(VLAN_TAGGED);
	if (kind == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip4 + 1) > end)
			return drop(MALFORMED);
		map_v4(to.address, &ip4->daddr);
	} else if (kind == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end)
			return drop(MALFORMED);
		__builtin_memcpy(to.address, &ip6->daddr, 16);
		type = discovery(ip6, end, !dev->no_slow_path);
	} else if (dev->no_slow_path && kind != bpf_htons(ETH_P_ARP)) {
		return drop(NO_SLOW_PATH);
	} else {
		return pass();
	}
	// Neighbour discovery is between the pod and the kernel.
	if (!type) {
		vni = bpf_htonl(dev->vni);
		__builtin_memcpy(to.network, &vni, 4);
		action = bpf_map_lookup_elem(&cluster, &to);
		given = action && *action ? give(packet, dev) : PASS;
		if (given != PASS)
			return given;
	}
	sent.source.ifindex = packet->ifindex;
	sent.type = type;
	if (kind == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip4 + 1) > end)
			return drop(MALFORMED);
		read_sent_v4(ip4, end, &sent);
	} else {
		if ((void *)(ip6 + 1) > end)
			return drop(MALFORMED);
		read_sent_v6(ip6, end, &sent);
	}
	if (!may_pass(&sent, dev, eth))
		return DROP;
	return action && *action ? without_worker() : pass();
}

#endif
