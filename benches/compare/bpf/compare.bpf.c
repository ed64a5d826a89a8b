// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// What Viaduct is compared with: push and pull in XDP, with a redirect; the
// redirect into the sockets of the bare forwarder; and a far end that sends back
// what it is sent. IPv4 and UDP only, without options: what the generator sends.
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define OUTER_LEN 50
#define PUSHED_LEN 64 // with the inner Ethernet header, which is another one in the tunnel
#define VXLAN_PORT 8472
#define MAX_PODS 128
#define UNDERLAY MAX_PODS // place of the underlay among `devices`
#define FIRST_HOST 2	  // the last byte of the first pod's address

// What is put in front of a packet, lengths and source port apart.
struct outer {
	__u8 bytes[PUSHED_LEN];
	__u32 sum; // of the IPv4 header, without its length
};

struct vxlan {
	__u8 flags;
	__u8 reserved[3];
	__u8 vni[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct outer);
} outers SEC(".maps");

// By pod: the Ethernet addresses of what is delivered to it.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PODS);
	__type(key, __u32);
	__type(value, __u8[12]);
} pods SEC(".maps");

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

// Packets sent on: 0 into the tunnel, 1 out of it.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count(__u32 way)
{
	__u64 *n = bpf_map_lookup_elem(&counts, &way);
	if (n)
		++*n;
}

static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// The IPv4 header of a UDP packet that is to go on, its TTL one less.
static __always_inline struct iphdr *routed(void *at, void *end)
{
	struct ethhdr *eth = at;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return 0;
	if (ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP || ip->ttl <= 1)
		return 0;
	ip->ttl--;
	// RFC 1624: 0x0100 less in the header is as much more in the sum.
	__u32 check = ip->check + bpf_htons(0x0100);
	ip->check = check + (check >> 16);
	return ip;
}

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
	struct udphdr *ports = (void *)(inner + 1);
	__u32 hash = (inner->saddr ^ inner->daddr ^ ports->source ^ ((__u32)ports->dest << 16)) * 0x9e3779b1;
	if (bpf_xdp_adjust_head(ctx, -OUTER_LEN))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + PUSHED_LEN > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, outer->bytes, PUSHED_LEN);
	struct iphdr *ip = data + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	__u16 length = end - data - ETH_HLEN;
	ip->tot_len = bpf_htons(length);
	ip->check = folded(outer->sum + bpf_htons(length));
	udp->source = bpf_htons(0xc000 | (hash >> 18));
	udp->len = bpf_htons(length - sizeof(*ip));
	count(0);
	return bpf_redirect_map(&devices, UNDERLAY, 0);
}

static __always_inline bool is_tunnel(void *at, void *end)
{
	struct ethhdr *eth = at;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct vxlan *vxlan = (void *)(udp + 1);
	return (void *)(vxlan + 1) <= end && eth->h_proto == bpf_htons(ETH_P_IP) && ip->ihl == 5 &&
	       ip->protocol == IPPROTO_UDP && udp->dest == bpf_htons(VXLAN_PORT) && vxlan->flags == 8 &&
	       vxlan->vni[2] == 1;
}

SEC("xdp")
int pull(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	if (!is_tunnel(data, end))
		return XDP_PASS;
	struct iphdr *inner = routed(data + OUTER_LEN, end);
	if (!inner)
		return XDP_PASS;
	__u32 place = (bpf_ntohl(inner->daddr) & 0xff) - FIRST_HOST;
	__u8 *addresses = bpf_map_lookup_elem(&pods, &place);
	if (!addresses)
		return XDP_PASS;
	if (bpf_xdp_adjust_head(ctx, OUTER_LEN))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + ETH_HLEN > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, addresses, 12);
	count(1);
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
