// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// What a tc hook costs by itself: push at the pods' host ends, pull at the underlay, and redirects. All offloads stay:
// packets of many segments go through whole, and so do unfinished checksums.
#include "compare.h"
#include <linux/pkt_cls.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define TCX_NEXT (-1) // of Linux 6.6; headers of user space may be older
#define PUSH (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | \
	      BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH)
#define PULL (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)

// By place: the interface's number.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PODS + 1);
	__type(key, __u32);
	__type(value, __u32);
} interfaces SEC(".maps");

SEC("classifier")
int push(struct __sk_buff *skb)
{
	__u32 zero = 0, underlay = UNDERLAY;
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct outer *outer = bpf_map_lookup_elem(&outers, &zero);
	__u32 *interface = bpf_map_lookup_elem(&interfaces, &underlay);
	struct iphdr *inner = routed(data, end);
	if (!outer || !interface || !inner)
		return TCX_NEXT;
	__u16 port = entropy(inner);
	if (bpf_skb_adjust_room(skb, OUTER_LEN, BPF_ADJ_ROOM_MAC, PUSH))
		return TC_ACT_SHOT;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + PUSHED_LEN > end)
		return TC_ACT_SHOT;
	write_outer(data, outer, skb->len - ETH_HLEN, port);
	count(0, skb->len);
	return bpf_redirect(*interface, 0);
}

SEC("classifier")
int pull(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 place;
	if (!is_tunnel(data, end))
		return TCX_NEXT;
	struct iphdr *inner = routed(data + OUTER_LEN, end);
	__u8 *addresses = inner ? pod_of(inner, &place) : 0;
	if (!addresses)
		return TCX_NEXT;
	__u32 *interface = bpf_map_lookup_elem(&interfaces, &place);
	if (!interface || bpf_skb_adjust_room(skb, -OUTER_LEN, BPF_ADJ_ROOM_MAC, PULL))
		return TC_ACT_SHOT;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(data, addresses, 12);
	count(1, skb->len);
	return bpf_redirect_peer(*interface, 0);
}
