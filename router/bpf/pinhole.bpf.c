// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// Pinholes: what the workers forward goes to their AF_XDP sockets, everything
// else is XDP_PASS, and so is everything when the workers' heartbeat stops.
// Except forged packets: what workers would drop as such, the kernel does not
// get either.
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// Set by the loader before the programs are verified.
volatile const __u64 heartbeat_timeout_ns = 500000000;
// What is the workers' is dropped when they are gone, not left to the kernel.
volatile const __u32 fail_closed = 0;

#define ICMPV6 58
// Neighbour discovery (RFC 4861, section 4).
#define ROUTER_SOLICITATION 133
#define ROUTER_ADVERTISEMENT 134
#define REDIRECT 137
#define VXLAN_LEN 8
#define IP_MF_OR_OFFSET 0x3fff
#define IP_OFFSET 0x1fff

// One attached device. Queue q belongs to worker q mod workers; its socket is
// in slot base + q.
struct device {
	__u32 base;
	__u32 queues;
	__u32 workers;
	__u32 vni; // of a pod's network; not used on the underlay
	__u8 mac[6]; // the pod's
	__u8 alien; // of a network that the kernel does not carry
	__u8 zero;
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

struct address {
	__u8 bytes[16];
};

struct prefix {
	__u32 length; // bits of vni and address together
	__u8 vni[4];  // network order, so that it sorts in front
	__u8 address[16];
};

// One cache line a worker: it stores CLOCK_MONOTONIC in nanoseconds.
struct beat {
	__u64 at;
	__u64 pad[7];
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
	__uint(max_entries, 64);
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
	OUTCOMES
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

static __always_inline void count(__u32 outcome)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);
	if (n)
		(*n)++;
}

static __always_inline int pass(void)
{
	count(PASSED);
	return XDP_PASS;
}

static __always_inline int drop(__u32 outcome)
{
	count(outcome);
	return XDP_DROP;
}

// Nobody is there to take what the workers should have.
static __always_inline int without_worker(void)
{
	count(fail_closed ? CLOSED : STALE);
	return fail_closed ? XDP_DROP : XDP_PASS;
}

// False: nobody is there.
static __always_inline bool redirect(struct xdp_md *ctx, const struct device *dev)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 worker = dev->workers ? queue % dev->workers : 0;
	struct beat *beat = bpf_map_lookup_elem(&heartbeat, &worker);

	if (!beat || queue >= dev->queues)
		return false;
	// The clock of the last tick, milliseconds old: exact enough, and much cheaper to read.
	// Signed: most beats are newer.
	if ((__s64)(bpf_ktime_get_coarse_ns() - beat->at) > (__s64)heartbeat_timeout_ns)
		return false;
	// A slot without a socket, as after a crash, gives the flags' action.
	if (bpf_redirect_map(&xsks, dev->base + queue, XDP_PASS) != XDP_REDIRECT)
		return false;
	count(REDIRECTED);
	return true;
}

static __always_inline bool tagged(const struct ethhdr *eth)
{
	return eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD);
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	__u16 x[3], y[3];

	__builtin_memcpy(x, a, 6);
	__builtin_memcpy(y, b, 6);
	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline bool same_address(const __u8 *a, const __u8 *b)
{
	__u64 x[2], y[2];

	__builtin_memcpy(x, a, 16);
	__builtin_memcpy(y, b, 16);
	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void map_v4(__u8 *to, const void *from)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, from, 4);
}

// The UDP header behind an outer IP header without options or extensions; what has any, or is a
// fragment, is the kernel's. The VTEPs' addresses are noted.
static __always_inline struct udphdr *outer_udp(struct ethhdr *eth, void *end, struct vtep *vtep,
						__u8 *from)
{
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->version != 4 ||
		    ip->protocol != IPPROTO_UDP || (ip->frag_off & bpf_htons(IP_MF_OR_OFFSET)))
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

// NIC: VXLAN to one of our VTEPs for a local pod.
SEC("xdp")
int viaduct_underlay(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 ifindex = ctx->ingress_ifindex, vni, *carried;
	struct prefix from = { .length = 32 + 128 };
	struct ethhdr *eth = data, *inner;
	struct vtep vtep = {};
	struct pod pod = {};
	struct address outer, *origin;
	struct device *dev;
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
		return drop(tagged(inner) ? VLAN_TAGGED : MALFORMED);
	}
	dev = bpf_map_lookup_elem(&devices, &ifindex);
	if (!dev)
		return pass();
	local = bpf_map_lookup_elem(&pods, &pod);
	if (local && redirect(ctx, dev))
		return XDP_REDIRECT;
	if (!*carried)
		return drop(NO_SLOW_PATH);
	vni = bpf_htonl(pod.vni);
	__builtin_memcpy(from.vni, &vni, 4);
	origin = bpf_map_lookup_elem(&origins, &from);
	if (!origin || !same_address(origin->bytes, outer.bytes))
		return drop(UNKNOWN_VTEP);
	return local ? without_worker() : pass();
}

// What a pod sends to the kernel, as far as it matters here.
struct sent {
	struct source source;
	struct address to;
	__u16 port; // UDP, network order
	__u8 type; // neighbour discovery's, or 0
	bool v6;
};

static __always_inline void read_v4(struct iphdr *ip, void *end, struct sent *sent)
{
	struct udphdr *udp = (void *)ip + ip->ihl * 4;

	map_v4(sent->source.address, &ip->saddr);
	map_v4(sent->to.bytes, &ip->daddr);
	// What has no port here shows it where the kernel has put the fragments together.
	if (ip->protocol == IPPROTO_UDP && ip->ihl >= 5 && (void *)(udp + 1) <= end &&
	    !(ip->frag_off & bpf_htons(IP_OFFSET)))
		sent->port = udp->dest;
}

static __always_inline void read_v6(struct ipv6hdr *ip, void *end, struct sent *sent)
{
	struct udphdr *udp = (void *)(ip + 1);

	sent->v6 = true;
	__builtin_memcpy(sent->source.address, &ip->saddr, 16);
	__builtin_memcpy(sent->to.bytes, &ip->daddr, 16);
	if (ip->nexthdr == IPPROTO_UDP && (void *)(udp + 1) <= end)
		sent->port = udp->dest;
}

// Neighbour discovery's type (RFC 4861: 133-137, hop limit 255), or 0.
static __always_inline __u8 discovery(struct ipv6hdr *ip, void *end)
{
	__u8 *icmp = (void *)(ip + 1);

	if (ip->nexthdr == ICMPV6 && ip->hop_limit == 255 && (void *)(icmp + 1) <= end &&
	    *icmp >= ROUTER_SOLICITATION && *icmp <= REDIRECT)
		return *icmp;
	return 0;
}

static __always_inline bool link_local(const __u8 *address)
{
	return address[0] == 0xfe && (address[1] & 0xc0) == 0x80;
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
		count(SPOOFED);
		return false;
	}
	if (!sent->type && multicast(sent)) {
		count(MULTICAST);
		return false;
	}
	if (dev->alien && !sent->type) {
		count(NO_SLOW_PATH);
		return false;
	}
	__builtin_memcpy(node.address, sent->to.bytes, 16);
	if (sent->port && bpf_map_lookup_elem(&nodes, &node)) {
		count(TUNNEL_FROM_POD);
		return false;
	}
	return true;
}

// Host side of a pod's veth: packets to the cluster's prefixes. What decides about those comes
// first, and the rest is read of what the kernel gets only.
SEC("xdp")
int viaduct_pod(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct prefix to = { .length = 32 + 128 };
	__u32 ifindex = ctx->ingress_ifindex, *action = 0, vni;
	struct iphdr *ip4 = data + sizeof(struct ethhdr);
	struct ipv6hdr *ip6 = data + sizeof(struct ethhdr);
	struct ethhdr *eth = data;
	struct sent sent = {};
	struct device *dev;
	__u8 type = 0;

	if ((void *)(eth + 1) > end)
		return pass();
	dev = bpf_map_lookup_elem(&devices, &ifindex);
	if (!dev)
		return pass();
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip4 + 1) > end)
			return pass();
		map_v4(to.address, &ip4->daddr);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end)
			return pass();
		__builtin_memcpy(to.address, &ip6->daddr, 16);
		type = discovery(ip6, end);
	} else {
		return tagged(eth) ? drop(VLAN_TAGGED) : pass();
	}
	// Neighbour discovery is between the pod and the kernel.
	if (!type) {
		vni = bpf_htonl(dev->vni);
		__builtin_memcpy(to.vni, &vni, 4);
		action = bpf_map_lookup_elem(&cluster, &to);
		if (action && *action && redirect(ctx, dev))
			return XDP_REDIRECT;
	}
	sent.source.ifindex = ifindex;
	sent.type = type;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip4 + 1) > end)
			return pass();
		read_v4(ip4, end, &sent);
	} else {
		if ((void *)(ip6 + 1) > end)
			return pass();
		read_v6(ip6, end, &sent);
	}
	if (!may_pass(&sent, dev, eth))
		return XDP_DROP;
	return action && *action ? without_worker() : pass();
}
