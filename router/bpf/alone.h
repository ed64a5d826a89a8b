// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// Hooks without a daemon. What is settled stays so, and is carried on; but nobody follows the kernel's
// neighbours, routes and devices for hooks any more, so they ask the kernel itself.
#ifndef VIADUCT_ALONE_H
#define VIADUCT_ALONE_H

#include "settled.h"
#include "trunk.h"

// How hooks carry what is settled.
enum carrying {
	NOT,
	LED,   // by headers that the daemon keeps true
	ALONE, // by the kernel's neighbours: the daemon has ended, or hangs
};

// Where nothing may pass without the daemon, its end is seen at once by its socket.
static __always_inline enum carrying carrying(void)
{
	__u32 worker = 0;
	struct trunk *trunk;

	if (!settled)
		return NOT;
	if (!fail_closed)
		return lives(worker) ? LED : ALONE;
	trunk = bpf_map_lookup_elem(&trunks, &worker);
	return lives(worker) && trunk && bpf_map_lookup_elem(&xsks, &trunk->slot) ? LED : NOT;
}

// Whether there is such an interface still: what is redirected to one that has gone is lost.
static __always_inline bool is_there(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	return bpf_check_mtu(skb, ifindex, &mtu, 0, 0) >= 0;
}

// Whether the kernel sends to the end of a tunnel by the underlay, and so long a packet (IP, in bytes).
// Otherwise its own VXLAN device knows a way, or nobody does. Of an interface that does not forward,
// the kernel does not say: the VXLAN device carries none of its packets either.
static __always_inline bool leads_out(struct __sk_buff *skb, const struct way *way, __u32 underlay,
				      __u32 length)
{
	struct bpf_fib_lookup to = {
		.l4_protocol = IPPROTO_UDP,
		.ifindex = skb->ifindex,
		.tot_len = length,
	};
	const void *ip = way->header + ETH_HLEN;
	long found;

	if (way->length == HEADER_V4) {
		const struct iphdr *ip4 = ip;
		to.family = 2; // AF_INET
		to.ipv4_src = ip4->saddr;
		to.ipv4_dst = ip4->daddr;
	} else {
		const struct ipv6hdr *ip6 = ip;
		to.family = 10; // AF_INET6
		__builtin_memcpy(to.ipv6_src, &ip6->saddr, 16);
		__builtin_memcpy(to.ipv6_dst, &ip6->daddr, 16);
	}
	found = bpf_fib_lookup(skb, &to, sizeof(to), BPF_FIB_LOOKUP_SKIP_NEIGH);
	return found == BPF_FIB_LKUP_RET_FWD_DISABLED ||
	       (found == BPF_FIB_LKUP_RET_SUCCESS && to.ifindex == underlay);
}

#endif
