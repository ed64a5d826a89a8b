// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// What is settled: the forwarding table's entries as hooks read them, one map for each kind. The
// control side writes them; `router/src/bpf/settled/keys.rs` has the same types.
#ifndef VIADUCT_SETTLED_H
#define VIADUCT_SETTLED_H

#include "rules.h"

// Without it, hooks carry nothing and give everything to the workers.
volatile const __u32 settled = 1;

// As fib/src/ids.rs has them.
#define MAX_NETWORKS 1024
#define MAX_PORTS 4096
#define MAX_NEXT_HOPS 65536

// A pod's port. The underlay's is 0, and has neither network nor MACs.
struct port {
	__u32 ifindex;
	__u32 vni;
	__u16 network;
	__u16 mtu; // the longest IP packet
	__u8 mac[6]; // the pod's
	__u8 gateway_mac[6]; // the host end's; of the underlay, its own
	__u8 from; // 1: what it sends may be carried here
	__u8 to;   // 1: what it gets, too
	__u8 by_veth; // 1: frames go over its veth, whose other end has XDP of the pod's own
	__u8 zero;
};

struct network {
	__u16 id;
	__be16 udp_port;
	__u8 vtep_mac[6];  // over IPv4
	__u8 vtep_mac6[6]; // over IPv6
};

struct place {
	__u32 network;
	struct address address;
};

struct next_hop {
	struct address vtep;
	__u32 ways; // 0: it is not resolved
	__u32 present; // 0: there is no such next hop
};

struct slot {
	__u32 next_hop;
	__u32 number;
};

#define HEADER_V4 64
#define HEADER_V6 84

// A way to another node: the whole outer header, but for what differs from packet to packet.
struct way {
	__u16 room; // the longest inner IP packet
	__u8 length; // of the header
	__u8 copies_dscp;
	__u8 tos; // DSCP, where it is fixed
	__u8 summed; // the outer UDP checksum is computed, over all the packet
	__u8 zero[2];
	__u8 header[HEADER_V6];
};

// Packets and bytes of IP that a port's hook has carried.
struct traffic {
	__u64 packets;
	__u64 bytes;
};

#define MAP(name, kind, most, key_type, value_type) \
	struct { \
		__uint(type, kind); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__uint(max_entries, most); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")

MAP(links, BPF_MAP_TYPE_HASH, MAX_PORTS, __u32, __u32);
MAP(vnis, BPF_MAP_TYPE_HASH, MAX_NETWORKS, __u32, struct network);
MAP(locals, BPF_MAP_TYPE_HASH, 65536, struct place, __u32);
MAP(remotes, BPF_MAP_TYPE_LPM_TRIE, 1048576, struct prefix, __u32);
MAP(ways, BPF_MAP_TYPE_HASH, 131072, struct slot, struct way);

#define CELLS(name, kind, most, value_type) \
	struct { \
		__uint(type, kind); \
		__uint(max_entries, most); \
		__type(key, __u32); \
		__type(value, value_type); \
	} name SEC(".maps")

// By number; all zero where there is none.
CELLS(ports, BPF_MAP_TYPE_ARRAY, MAX_PORTS, struct port);
CELLS(next_hops, BPF_MAP_TYPE_ARRAY, MAX_NEXT_HOPS, struct next_hop);

// Where an address is.
enum whereabouts {
	NOWHERE,
	HERE,  // with a pod of this node: its port
	THERE, // behind another node: its next hop
};

struct where {
	__u32 kind;
	__u32 id;
	__u32 in_cluster; // as a destination; the kernel's otherwise
};

// What a processor has found of an address of late; of no use once any entry has changed.
struct known {
	__u64 generation;
	__u32 network;
	struct where where;
	struct address address;
};

#define KNOWN 2048 // a power of two

// All entries together, as they are since their last change.
struct generation {
	__u64 number;
	__u64 since; // CLOCK_MONOTONIC in nanoseconds
};

CELLS(known, BPF_MAP_TYPE_PERCPU_ARRAY, KNOWN, struct known);
CELLS(generation, BPF_MAP_TYPE_ARRAY, 1, struct generation);

static __always_inline const struct generation *current_generation(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&generation, &zero);
}

// Some entries for each port, by what has become of its packets.
enum fate {
	RECEIVED, // they came from the port
	SENT,     // they went to it
	REFUSED,  // they came from the port, and found no place on a trunk
	FATES
};

CELLS(carried, BPF_MAP_TYPE_PERCPU_ARRAY, FATES * MAX_PORTS, struct traffic);

static __always_inline void add(__u32 port, enum fate fate, __u32 packets, __u32 bytes)
{
	__u32 key = FATES * port + fate;
	struct traffic *traffic = bpf_map_lookup_elem(&carried, &key);

	if (traffic) {
		traffic->packets += packets;
		traffic->bytes += bytes;
	}
}

static __always_inline void count(__u32 port, enum fate fate, const struct inner *in)
{
	add(port, fate, in->packets, in->bytes);
}

// A port with its number.
struct numbered {
	__u32 id;
	struct port *port;
};

static __always_inline struct numbered port_of(__u32 id)
{
	struct numbered found = { .id = id, .port = bpf_map_lookup_elem(&ports, &id) };

	return found;
}

static __always_inline struct numbered port_of_link(__u32 ifindex)
{
	__u32 *id = bpf_map_lookup_elem(&links, &ifindex);
	struct numbered none = {};

	return id ? port_of(*id) : none;
}

// Whether an address is the cluster's and not this host's: the rest is the kernel's.
static __always_inline bool in_cluster(__u32 vni, const struct address *to)
{
	struct prefix prefix = { .length = 32 + 128 };
	__be32 number = bpf_htonl(vni);
	__u32 *action;

	__builtin_memcpy(prefix.network, &number, 4);
	__builtin_memcpy(prefix.address, to, 16);
	action = bpf_map_lookup_elem(&cluster, &prefix);
	return action && *action;
}

static __always_inline struct where look_up(__u32 network, __u32 vni, const struct address *address)
{
	struct place place = { .network = network, .address = *address };
	struct prefix prefix = { .length = 32 + 128 };
	__be32 number = bpf_htonl(network);
	struct where where = {};
	__u32 *id;

	id = bpf_map_lookup_elem(&locals, &place);
	if (id) {
		where.kind = HERE;
		where.id = *id;
		return where;
	}
	__builtin_memcpy(prefix.network, &number, 4);
	__builtin_memcpy(prefix.address, address, 16);
	id = bpf_map_lookup_elem(&remotes, &prefix);
	if (id) {
		where.kind = THERE;
		where.id = *id;
		where.in_cluster = in_cluster(vni, address);
	}
	return where;
}

// Where an address of a network is, from what is known if possible. The generation is read before the
// entries are: what changes meanwhile makes the answer void.
static __always_inline struct where where_is(__u32 network, __u32 vni, const struct address *address)
{
	const struct generation *at = current_generation();
	__u64 words[2], now;
	struct known *it;
	__u32 slot;

	__builtin_memcpy(words, address, 16);
	slot = (mix(mix(MULTIPLIER, words[0] ^ network), words[1]) >> 32) & (KNOWN - 1);
	it = bpf_map_lookup_elem(&known, &slot);
	if (!at || !it)
		return look_up(network, vni, address);
	now = *(volatile __u64 *)&at->number;
	if (it->generation != now || it->network != network ||
	    !same_address(it->address.bytes, address->bytes)) {
		it->where = look_up(network, vni, address);
		it->network = network;
		it->address = *address;
		it->generation = now;
	}
	return it->where;
}

// One of the ways to a next hop, chosen by the flow (fib::slot).
static __always_inline struct way *way_of(const struct next_hop *hop, __u32 id, __u32 hash)
{
	struct slot slot = { .next_hop = id, .number = (__u64)hop->ways * hash >> 32 };

	return hop->ways ? bpf_map_lookup_elem(&ways, &slot) : 0;
}

#endif
