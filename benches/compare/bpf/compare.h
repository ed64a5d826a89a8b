// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// What the ceilings in XDP and in tc have in common: IPv4 without options, one other node, pods by the last byte of their
// addresses.
#ifndef COMPARE_H
#define COMPARE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define OUTER_LEN 50
#define PUSHED_LEN 64 // with the inner Ethernet header, which is another one in the tunnel
#define VXLAN_PORT 8472
#define MAX_PODS 128
#define UNDERLAY MAX_PODS // its place among interfaces
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

// Packets sent on: 0 into the tunnel, 1 out of it; and their bytes: 2, 3.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count(__u32 way, __u64 length)
{
	__u32 place = way + 2;
	__u64 *packets = bpf_map_lookup_elem(&counts, &way);
	__u64 *bytes = bpf_map_lookup_elem(&counts, &place);
	if (packets)
		++*packets;
	if (bytes)
		*bytes += length;
}

static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// The IPv4 header of a packet that is to go on, its TTL one less. What begins with ports has them behind it.
static __always_inline struct iphdr *routed(void *at, void *end)
{
	struct ethhdr *eth = at;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return 0;
	if (ip->version != 4 || ip->ihl != 5 || ip->ttl <= 1)
		return 0;
	ip->ttl--;
	// RFC 1624: 0x0100 less in the header is as much more in the sum.
	__u32 check = ip->check + bpf_htons(0x0100);
	ip->check = check + (check >> 16);
	return ip;
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

// The source port of a flow's tunnel packets. Other protocols have something of their own where TCP and UDP have ports.
static __always_inline __u16 entropy(struct iphdr *inner)
{
	struct udphdr *ports = (void *)(inner + 1);
	__u32 hash = (inner->saddr ^ inner->daddr ^ ports->source ^ ((__u32)ports->dest << 16)) * 0x9e3779b1;
	return bpf_htons(0xc000 | (hash >> 18));
}

// Writes the outer header, in front of a packet that has room for it.
static __always_inline void write_outer(void *data, const struct outer *outer, __u16 length, __u16 port)
{
	struct iphdr *ip = data + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	__builtin_memcpy(data, outer->bytes, PUSHED_LEN);
	ip->tot_len = bpf_htons(length);
	ip->check = folded(outer->sum + bpf_htons(length));
	udp->source = port;
	udp->len = bpf_htons(length - sizeof(*ip));
}

// The pod that a packet is for: its place, and the Ethernet addresses of what it gets.
static __always_inline __u8 *pod_of(const struct iphdr *ip, __u32 *place)
{
	*place = (bpf_ntohl(ip->daddr) & 0xff) - FIRST_HOST;
	return bpf_map_lookup_elem(&pods, place);
}

#endif
