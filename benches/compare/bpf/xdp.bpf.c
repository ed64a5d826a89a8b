// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// What Viaduct is compared with: push and pull in XDP, with a redirect; the
// redirect into the sockets of the bare forwarder; and a far end that sends back
// what it is sent.
#include "compare.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, MAX_PODS + 1);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

// The bare forwarder's sockets, and which of them has an interface's packets.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_PODS + 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS + 1);
	__type(key, __u32);
	__type(value, __u32);
} slots SEC(".maps");

SEC("xdp")
int push(struct xdp_md *ctx)
{
	__u32 zero = 0;
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct outer *outer = bpf_map_lookup_elem(&outers, &zero);
	struct iphdr *inner = routed(data, end);
	if (!outer || !inner)
		return XDP_PASS;
	__u16 port = entropy(inner);
	if (bpf_xdp_adjust_head(ctx, -OUTER_LEN))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + PUSHED_LEN > end)
		return XDP_ABORTED;
	write_outer(data, outer, end - data - ETH_HLEN, port);
	count(0, end - data);
	return bpf_redirect_map(&devices, UNDERLAY, 0);
}

SEC("xdp")
int pull(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 place;
	if (!is_tunnel(data, end))
		return XDP_PASS;
	struct iphdr *inner = routed(data + OUTER_LEN, end);
	__u8 *addresses = inner ? pod_of(inner, &place) : 0;
	if (!addresses)
		return XDP_PASS;
	if (bpf_xdp_adjust_head(ctx, OUTER_LEN))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + ETH_HLEN > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, addresses, 12);
	count(1, end - data);
	return bpf_redirect_map(&devices, place, 0);
}

SEC("xdp")
int to_socket(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	__u32 interface = ctx->ingress_ifindex;
	__u32 *slot = bpf_map_lookup_elem(&slots, &interface);
	return slot ? bpf_redirect_map(&sockets, *slot, XDP_PASS) : XDP_PASS;
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

static __always_inline void swap_addresses(struct iphdr *ip)
{
	__u32 address = ip->daddr;
	ip->daddr = ip->saddr;
	ip->saddr = address;
}

// Sends a tunnel's packet back, inside and outside. Checksums stay as they are, since their parts only change places;
// but a kernel leaves the outer UDP checksum to a NIC, which a veth is not.
SEC("xdp")
int reflect(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data + OUTER_LEN;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	if (!is_tunnel(data, end) || (void *)(udp + 1) > end)
		return XDP_PASS;
	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	swap_macs(data);
	swap_addresses(data + ETH_HLEN);
	((struct udphdr *)(data + ETH_HLEN + sizeof(struct iphdr)))->check = 0;
	swap_macs(eth);
	swap_addresses(ip);
	__u16 port = udp->dest;
	udp->dest = udp->source;
	udp->source = port;
	// As XDP_TX, which on a veth wakes only a peer with an XDP program.
	return bpf_redirect(ctx->ingress_ifindex, 0);
}
