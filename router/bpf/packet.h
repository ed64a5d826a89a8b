// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// What packets look like, for all programs, and the rules of encap/ that tc hooks keep to the letter.
#ifndef VIADUCT_PACKET_H
#define VIADUCT_PACKET_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ICMPV6 58
// Neighbour discovery (RFC 4861, section 4).
#define ROUTER_SOLICITATION 133
#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_SOLICITATION 135
#define REDIRECT 137
// Version 4, and a header of five words: no options.
#define PLAIN_V4 0x45
#define MORE_OR_OFFSET 0x3fff
#define TCP_LEN 20
#define UDP_LEN 8
#define ECN 3
#define ECT_1 1

// The VXLAN header (RFC 7348, section 5).
struct vxlan {
	__u8 flags;
	__u8 reserved[3];
	__u8 vni[3];
	__u8 reserved2;
};

#define VXLAN_VNI_VALID 0x08

// IPv4 addresses are mapped (::ffff:a.b.c.d).
struct address {
	__u8 bytes[16];
};

// A key of prefix maps.
struct prefix {
	__u32 length; // bits of network and address together
	__u8 network[4]; // its number, network order, so that it sorts in front
	__u8 address[16];
};

// An IP packet as far as forwarding needs it.
struct inner {
	struct address source, destination;
	__u32 length;
	__u8 tos, hops, protocol;
	__u8 header; // bytes of the IP header
	__u16 ports[2];
	bool v6;
	// As they are on the wire: of what is merged, its segments.
	__u32 packets, bytes;
};

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

// Ones' complement sum (RFC 1071).
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u32 sum_v4(const struct iphdr *ip)
{
	const __u16 *word = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += word[i];
	return sum;
}

// RFC 1624, equation 3: a word of the header changes from one value to another.
static __always_inline void change_v4(struct iphdr *ip, __u16 before, __u16 after)
{
	ip->check = ~fold((__u16)~ip->check + (__u16)~before + after);
}

static __always_inline __u8 tos_v6(const struct ipv6hdr *ip)
{
	return bpf_ntohs(*(const __be16 *)ip) >> 4;
}

// The bytes that the packet has behind its header have to be there for its ports to count, and be
// as many as its protocol needs at least. Only protocols whose packets have nothing more to be
// looked at: SCTP has its checksum finished by workers, and others are rare.
static __always_inline bool read_ports(void *l4, void *end, struct inner *in)
{
	__u32 left = in->length - in->header;
	__be16 *ports = l4;
	__u8 *type = l4;

	if ((void *)(ports + 2) > end)
		return false;
	if (in->protocol == IPPROTO_TCP ? left < TCP_LEN : left < UDP_LEN)
		return false;
	if (in->protocol == IPPROTO_TCP || in->protocol == IPPROTO_UDP) {
		in->ports[0] = bpf_ntohs(ports[0]);
		in->ports[1] = bpf_ntohs(ports[1]);
		return true;
	}
	if (in->protocol == ICMPV6)
		return in->v6 && (*type < ROUTER_SOLICITATION || *type > REDIRECT);
	return in->protocol == IPPROTO_ICMP && !in->v6;
}

static __always_inline bool read_v4(struct iphdr *ip, void *end, struct inner *in)
{
	if ((void *)(ip + 1) > end || *(__u8 *)ip != PLAIN_V4 ||
	    (ip->frag_off & bpf_htons(MORE_OR_OFFSET)) || fold(sum_v4(ip)) != 0xffff)
		return false;
	in->length = bpf_ntohs(ip->tot_len);
	in->header = sizeof(*ip);
	if (in->length < sizeof(*ip))
		return false;
	in->v6 = false;
	in->tos = ip->tos;
	in->hops = ip->ttl;
	in->protocol = ip->protocol;
	map_v4(in->source.bytes, &ip->saddr);
	map_v4(in->destination.bytes, &ip->daddr);
	// 224.0.0.0/4
	return (in->destination.bytes[12] & 0xf0) != 0xe0 && read_ports(ip + 1, end, in);
}

static __always_inline bool read_v6(struct ipv6hdr *ip, void *end, struct inner *in)
{
	if ((void *)(ip + 1) > end || ip->version != 6)
		return false;
	in->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	in->header = sizeof(*ip);
	in->v6 = true;
	in->tos = tos_v6(ip);
	in->hops = ip->hop_limit;
	in->protocol = ip->nexthdr;
	__builtin_memcpy(&in->source, &ip->saddr, 16);
	__builtin_memcpy(&in->destination, &ip->daddr, 16);
	// ff00::/8
	return in->destination.bytes[0] != 0xff && read_ports(ip + 1, end, in);
}

// The whole plain IP packet behind an Ethernet header. False: it is none, or there is more to it
// than hooks look at.
static __always_inline bool read_inner(struct ethhdr *eth, void *end, struct inner *in)
{
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return read_v4((void *)(eth + 1), end, in);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return read_v6((void *)(eth + 1), end, in);
	return false;
}

#define MULTIPLIER 0x9e3779b97f4a7c15ULL

// The halves of a product of 128 bits, mixed (encap/src/flow.rs).
static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	__u64 a = hash ^ word, b = MULTIPLIER;
	__u64 a0 = (__u32)a, a1 = a >> 32, b0 = (__u32)b, b1 = b >> 32;
	__u64 low = a0 * b0, x = a0 * b1, y = a1 * b0;
	__u64 carry = ((low >> 32) + (__u32)x + (__u32)y) >> 32;

	return a * b ^ (a1 * b1 + (x >> 32) + (y >> 32) + carry);
}

static __always_inline __u64 rotated(__u64 word)
{
	return word << 32 | word >> 32;
}

static __always_inline void words(const struct inner *in, const struct address *address, __u64 *to)
{
	__be64 both[2];

	__builtin_memcpy(both, address, 16);
	to[0] = in->v6 ? bpf_be64_to_cpu(both[0]) : (__u32)bpf_be64_to_cpu(both[1]);
	to[1] = in->v6 ? bpf_be64_to_cpu(both[1]) : 0;
}

// The flow's hash, as workers have it: both use one source port and one way for a flow.
static __always_inline __u32 flow_hash(const struct inner *in)
{
	__u64 ports = (__u64)in->ports[0] << 16 | in->ports[1];
	__u64 from[2], to[2], hash;

	words(in, &in->source, from);
	words(in, &in->destination, to);
	hash = mix(MULTIPLIER, rotated(from[0]) ^ to[0]);
	hash = mix(hash, rotated(from[1]) ^ to[1]);
	return mix(hash, ports << 8 | in->protocol) >> 32;
}

static __always_inline __u16 source_port(__u32 hash)
{
	return 0xc000 | (hash & 0x3fff);
}

#endif
