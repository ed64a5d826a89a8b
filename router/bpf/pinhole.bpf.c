// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// Pinholes: what the workers forward goes to their AF_XDP sockets, everything
// else is XDP_PASS, and so is everything when the workers' heartbeat stops.
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
#define VXLAN_LEN 8
#define IP_MF_OR_OFFSET 0x3fff

// One attached device. Queue q belongs to worker q mod workers; its socket is
// in slot base + q.
struct device {
	__u32 base;
	__u32 queues;
	__u32 workers;
	__u32 vni; // of a pod's network; not used on the underlay
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

enum outcome { REDIRECTED, PASSED, STALE, CLOSED, OUTCOMES };

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

// Nobody is there to take what the workers should have.
static __always_inline int without_worker(void)
{
	count(fail_closed ? CLOSED : STALE);
	return fail_closed ? XDP_DROP : XDP_PASS;
}

static __always_inline int redirect(struct xdp_md *ctx, const struct device *dev)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 worker = dev->workers ? queue % dev->workers : 0;
	struct beat *beat = bpf_map_lookup_elem(&heartbeat, &worker);
	long action;

	if (!beat || queue >= dev->queues)
		return without_worker();
	// Signed: a beat may be newer than this program's reading of the clock.
	if ((__s64)(bpf_ktime_get_ns() - beat->at) > (__s64)heartbeat_timeout_ns)
		return without_worker();
	// A slot without a socket, as after a crash, gives the flags' action.
	action = bpf_redirect_map(&xsks, dev->base + queue, XDP_PASS);
	if (action != XDP_REDIRECT)
		return without_worker();
	count(REDIRECTED);
	return action;
}

static __always_inline void map_v4(__u8 *to, const void *from)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, from, 4);
}

// The UDP header behind an outer IP header without options or extensions; what has any, or is a
// fragment, is the kernel's. The VTEP's address is noted.
static __always_inline struct udphdr *outer_udp(struct ethhdr *eth, void *end, struct vtep *vtep)
{
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->version != 4 ||
		    ip->protocol != IPPROTO_UDP || (ip->frag_off & bpf_htons(IP_MF_OR_OFFSET)))
			return 0;
		map_v4(vtep->address, &ip->daddr);
		return (void *)(ip + 1);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
			return 0;
		__builtin_memcpy(vtep->address, &ip->daddr, 16);
		return (void *)(ip + 1);
	}
	return 0;
}

// NIC: VXLAN to one of our VTEPs for a local pod.
SEC("xdp")
int viaduct_underlay(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 ifindex = ctx->ingress_ifindex;
	struct ethhdr *eth = data, *inner;
	struct vtep vtep = {};
	struct pod pod = {};
	struct device *dev;
	struct udphdr *udp;
	__u8 *vxlan;

	if ((void *)(eth + 1) > end)
		return pass();
	udp = outer_udp(eth, end, &vtep);
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
	if (inner->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip4 = (void *)(inner + 1);
		if ((void *)(ip4 + 1) > end)
			return pass();
		map_v4(pod.address, &ip4->daddr);
	} else if (inner->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(inner + 1);
		if ((void *)(ip6 + 1) > end)
			return pass();
		__builtin_memcpy(pod.address, &ip6->daddr, 16);
	} else {
		return pass();
	}
	if (!bpf_map_lookup_elem(&pods, &pod))
		return pass();
	dev = bpf_map_lookup_elem(&devices, &ifindex);
	return dev ? redirect(ctx, dev) : pass();
}

// Host side of a pod's veth: packets to the cluster's prefixes.
SEC("xdp")
int viaduct_pod(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 ifindex = ctx->ingress_ifindex;
	struct ethhdr *eth = data;
	struct prefix key = { .length = 32 + 128 };
	struct device *dev;
	__u32 *action, vni;

	if ((void *)(eth + 1) > end)
		return pass();
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end)
			return pass();
		map_v4(key.address, &ip->daddr);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		__u8 *icmp = (void *)(ip + 1);
		if ((void *)(ip + 1) > end)
			return pass();
		// Neighbour discovery (RFC 4861: types 133-137, hop limit 255)
		// is between the pod and the kernel.
		if (ip->nexthdr == ICMPV6 && ip->hop_limit == 255 &&
		    (void *)(icmp + 1) <= end && *icmp >= 133 && *icmp <= 137)
			return pass();
		__builtin_memcpy(key.address, &ip->daddr, 16);
	} else {
		return pass();
	}
	dev = bpf_map_lookup_elem(&devices, &ifindex);
	if (!dev)
		return pass();
	vni = bpf_htonl(dev->vni);
	__builtin_memcpy(key.vni, &vni, 4);
	action = bpf_map_lookup_elem(&cluster, &key);
	if (!action || !*action)
		return pass();
	return redirect(ctx, dev);
}
