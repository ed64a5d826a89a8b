// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// A packet generator, run over live frames (BPF_F_TEST_XDP_LIVE_FRAMES), and
// receivers for XDP and tc that count what they are sent and drop it.
//
// All that depends on the traffic is worked out in userspace: a header for each
// interface and length, and for each flow what differs. Frames are used again
// with whatever their last receiver left in them, so every header is written
// anew.
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// Ethernet, IPv4 and UDP; and with a tunnel's headers in front.
#define PLAIN_LEN 42
#define TUNNEL_LEN 92
#define OUTER_LEN 50
#define HEADER_ROOM 96
#define LENGTHS 4
#define PATTERN 16
#define TCX_NEXT (-1) // of Linux 6.6; headers of user space may be older
#define VXLAN_IANA 4789
#define VXLAN_LINUX 8472

// Set by the loader before the programs are verified.
volatile const __u32 tunnelled = 0;
volatile const __u32 flow_count = 1;
volatile const __u32 pattern_length = 1;
volatile const __u32 run_id = 0;
volatile const __u16 tunnel_port = VXLAN_LINUX;

// Follows the inner UDP header. A mark, and what the receiver needs.
struct stamp {
	__u32 run;
	__u32 flow;
	__u32 sequence; // of the flow
	__u8 sent_at[8]; // CLOCK_MONOTONIC, nanoseconds; not aligned
} __attribute__((packed));

struct header {
	__u8 bytes[HEADER_ROOM];
	__u32 length; // of the frame
	__u32 sum;    // of the inner IPv4 header, without its destination
};

struct flow {
	__u32 destination; // this and the ports in network order
	__u16 source_port;
	__u16 destination_port;
	__u16 outer_port;
	__u16 interface; // place in `interfaces`
	__u32 sequence;
};

struct generator {
	__u64 next;     // when the next packet is due, 1/256 ns
	__u64 interval; // between packets, 1/256 ns; 0: flat out
	__u64 backlog;  // what may be made up for, 1/256 ns
	__u64 sent;
	__u64 bytes;
	__u64 first; // when the run's first and last packets went
	__u64 last;
	__u32 flow;
	__u32 turn;
	__u8 pattern[PATTERN]; // places in an interface's headers
};

struct arrivals {
	__u64 packets;
	__u64 bytes;
	__u64 reordered;
	__u64 foreign; // not of this run
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct generator);
} generators SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct header);
} headers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arrivals);
} arrived SEC(".maps");

// By flow: the sequence number after the highest that has come.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} expected SEC(".maps");

// Latencies in nanoseconds, 32 buckets for each power of two.
#define BUCKETS 1184
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} latencies SEC(".maps");

static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// True when a packet is due, which is then accounted for.
static __always_inline bool due(struct generator *g, __u64 now)
{
	if (!g->interval)
		return true;
	now <<= 8;
	if (now < g->next)
		return false;
	if (now - g->next > g->backlog)
		g->next = now - g->backlog;
	g->next += g->interval;
	return true;
}

static __always_inline int write(void *at, struct flow *flow, struct header *header, void *end, __u64 now)
{
	if (at + PLAIN_LEN + sizeof(struct stamp) > end)
		return XDP_ABORTED;
	struct iphdr *ip = at + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	struct stamp *stamp = (void *)(udp + 1);
	ip->daddr = flow->destination;
	ip->check = folded(header->sum + (flow->destination & 0xffff) + (flow->destination >> 16));
	udp->source = flow->source_port;
	udp->dest = flow->destination_port;
	stamp->run = run_id;
	stamp->sequence = flow->sequence++;
	__builtin_memcpy(stamp->sent_at, &now, sizeof(now));
	return 0;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct generator *g = bpf_map_lookup_elem(&generators, &zero);
	if (!g)
		return XDP_ABORTED;
	__u64 now = bpf_ktime_get_ns();
	// Not yet: the frame goes round.
	if (!due(g, now))
		return XDP_DROP;
	__u32 number = g->flow;
	g->flow = number + 1 < flow_count ? number + 1 : 0;
	__u32 turn = g->turn;
	g->turn = turn + 1 < pattern_length ? turn + 1 : 0;
	struct flow *flow = bpf_map_lookup_elem(&flows, &number);
	if (!flow || turn >= PATTERN)
		return XDP_ABORTED;
	__u32 place = flow->interface * LENGTHS + g->pattern[turn];
	struct header *header = bpf_map_lookup_elem(&headers, &place);
	if (!header)
		return XDP_ABORTED;
	int too_long = (int)(ctx->data_end - ctx->data) - (int)header->length;
	if (too_long > 0 && bpf_xdp_adjust_tail(ctx, -too_long))
		return XDP_ABORTED;
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct stamp *stamp;
	if (tunnelled) {
		if (data + TUNNEL_LEN + sizeof(struct stamp) > end)
			return XDP_ABORTED;
		__builtin_memcpy(data, header->bytes, TUNNEL_LEN);
		struct udphdr *outer = data + ETH_HLEN + sizeof(struct iphdr);
		outer->source = flow->outer_port;
		stamp = data + TUNNEL_LEN;
		stamp->flow = number;
		if (write(data + OUTER_LEN, flow, header, end, now))
			return XDP_ABORTED;
	} else {
		if (data + PLAIN_LEN + sizeof(struct stamp) > end)
			return XDP_ABORTED;
		__builtin_memcpy(data, header->bytes, PLAIN_LEN);
		stamp = data + PLAIN_LEN;
		stamp->flow = number;
		if (write(data, flow, header, end, now))
			return XDP_ABORTED;
	}
	if (!g->first)
		g->first = now;
	g->last = now;
	g->sent++;
	g->bytes += header->length;
	return bpf_redirect_map(&interfaces, flow->interface, 0);
}

static __always_inline __u32 bucket(__u64 value)
{
	__u32 shift = 0;
	// In the end value >> shift is below 64, and from 32 on unless the value itself is less.
	for (int bits = 32; bits; bits >>= 1) {
		if (value >> (shift + bits) >= 32)
			shift += bits;
	}
	__u32 index = 32 * shift + (value >> shift);
	return index < BUCKETS ? index : BUCKETS - 1;
}

// Counts a packet of this run; false if it is another's.
static __always_inline bool counted(void *at, void *end)
{
	__u32 zero = 0;
	if (at + PLAIN_LEN + sizeof(struct stamp) > end)
		return false;
	struct udphdr *udp = at + ETH_HLEN + sizeof(struct iphdr);
	struct iphdr *ip = at + ETH_HLEN;
	if (((struct ethhdr *)at)->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP)
		return false;
	if (udp->dest == bpf_htons(tunnel_port)) {
		if (at + TUNNEL_LEN + sizeof(struct stamp) > end)
			return false;
		udp = at + OUTER_LEN + ETH_HLEN + sizeof(struct iphdr);
	}
	struct stamp *stamp = (void *)(udp + 1);
	struct arrivals *count = bpf_map_lookup_elem(&arrived, &zero);
	if (!count)
		return false;
	if (stamp->run != run_id) {
		count->foreign++;
		return false;
	}
	count->packets++;
	count->bytes += end - at;
	__u32 number = stamp->flow;
	__u32 *next = bpf_map_lookup_elem(&expected, &number);
	if (next) {
		__s32 ahead = stamp->sequence - *next;
		if (ahead < 0)
			count->reordered++;
		else
			*next = stamp->sequence + 1;
	}
	__u64 sent_at;
	__builtin_memcpy(&sent_at, stamp->sent_at, sizeof(sent_at));
	__u64 now = bpf_ktime_get_ns();
	__u32 index = bucket(now > sent_at ? now - sent_at : 0);
	__u64 *in_bucket = bpf_map_lookup_elem(&latencies, &index);
	if (in_bucket)
		++*in_bucket;
	return true;
}

SEC("xdp")
int receive(struct xdp_md *ctx)
{
	return counted((void *)(long)ctx->data, (void *)(long)ctx->data_end) ? XDP_DROP : XDP_PASS;
}

// Behind XDP, which does not see what bpf_redirect_peer brings.
SEC("classifier")
int receive_tc(struct __sk_buff *skb)
{
	// The generator's packets are short of one page: all of it is there, or can be had.
	if (skb->data_end - skb->data < skb->len && bpf_skb_pull_data(skb, skb->len))
		return TCX_NEXT;
	return counted((void *)(long)skb->data, (void *)(long)skb->data_end) ? TC_ACT_SHOT : TCX_NEXT;
}
