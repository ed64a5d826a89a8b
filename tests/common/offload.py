"""Packets as a kernel leaves them to hardware: with segments to cut, checksums to finish, tags beside them; and odd ones.

offload.py from-pod INTERFACE SEED COUNT MAC_FROM MAC_TO SOURCE4 SOURCE6 TARGET4 TARGET6
    from a pod to another
offload.py tunnelled INTERFACE SEED COUNT MAC_FROM MAC_TO SOURCE4 SOURCE6 TARGET4 TARGET6 VTEP_FROM VTEP_TO VTEP_MAC
    from another node's pod, in VXLAN from that node's address and to the MAC of this one's VTEP
Prints how many the kernel took. The same seed makes the same packets. Their payload begins with "partial" where the checksum is
left to hardware, and with "tagged" in a VLAN that nobody has.
"""

import ipaddress
import random
import socket
import struct
import sys
import time

# linux/socket.h, linux/if_packet.h, linux/virtio_net.h
SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
TCP, UDP, ICMP, SCTP, ICMPV6 = 6, 17, 1, 132, 58
VXLAN = 8472
# Packets in a row, and the pause behind them: workers of a debug build keep up with this.
ROW, PAUSE = 16, 0.012


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def folded(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Maker:
    def __init__(self, seed, macs, sources, targets):
        self.random = random.Random(seed)
        self.macs, self.sources, self.targets = macs, sources, targets

    def odd(self, one_in):
        return self.random.randrange(one_in) == 0

    def transport(self, v6, payload):
        """Protocol, header and payload with a checksum of 0, where the checksum is, the kind of segments."""
        r = self.random
        kind = r.choice([TCP, TCP, TCP, UDP, UDP, ICMPV6 if v6 else ICMP, SCTP])
        ports = struct.pack("!HH", 1024 + r.randrange(64), 5000 + r.randrange(4))
        if kind == TCP:
            options = r.choice([b"", b"\1\1\x08\x0a" + bytes(8)])
            flags = r.choice([0x10, 0x18, 0x11, 0x90, 0x50])
            header = ports + struct.pack("!IIBBHHH", r.getrandbits(32), 7, (20 + len(options)) << 2, flags, 999, 0, 0)
            gso = (GSO_TCPV6 if v6 else GSO_TCPV4) | (GSO_ECN if flags & 0x80 else 0)
            return kind, header + options + payload, 16, gso
        if kind == UDP:
            return kind, ports + struct.pack("!HH", 8 + len(payload), 0) + payload, 6, GSO_UDP_L4
        if kind == SCTP:
            return kind, ports + bytes(8) + payload, 8, GSO_NONE
        return kind, bytes([128 if v6 else 8, 0, 0, 0, 1, 1, 1, 1]) + payload, 2, GSO_NONE

    def packet(self, segments):
        """An IP packet; header lengths and what is left to hardware: start and place of the checksum, kind and size of segments."""
        r = self.random
        v6 = r.randrange(2)
        source, target = self.sources[v6], self.targets[v6]
        if self.odd(20):
            source = ipaddress.ip_address(int(source) + 1 + r.randrange(3))
        if self.odd(20):
            target = ipaddress.ip_address(int(target) + 1 + r.randrange(500))
        size = r.randrange(100, 1380)
        many = segments and r.randrange(2)
        partial = many or r.randrange(2)
        length = r.randrange(size + 1, size * 8) if many else r.randrange(12, 1300)
        tag = r.choice([0, 5, 0xE000]) if self.odd(10) else None
        word = b"tagged" if tag == 5 else b"partial" if partial else b"whole"
        payload = word + bytes(r.getrandbits(8) for _ in range(16)) + bytes(max(0, length - len(word) - 16))
        protocol, body, place, gso = self.transport(v6, payload)
        if protocol in (SCTP, ICMP, ICMPV6):
            many = partial = False
            body = body[:1300]
        hops, tos = r.choice([64, 64, 64, 2, 1]), r.choice([0, 0, 1, 2, 3, 0xB8])
        if v6:
            head = struct.pack("!IHBB", 6 << 28 | tos << 20, len(body), protocol, hops) + source.packed + target.packed
        else:
            options = b"\1\1\1\1" if self.odd(20) else b""
            flags = 0x2000 if self.odd(30) and not many else r.choice([0, 0x4000])
            head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, tos, 20 + len(options) + len(body),
                               r.getrandbits(16), flags, hops, protocol, 0)
            head += source.packed + target.packed + options
            check = folded(head) ^ 0xFFFF ^ (1 if self.odd(30) else 0)
            head = head[:10] + struct.pack("!H", check) + head[12:]
        pseudo = source.packed + target.packed + struct.pack("!II", len(body), protocol)
        if protocol != SCTP:
            sum_ = folded(b"" if protocol == ICMP else pseudo)
            if not partial:
                sum_ = folded(struct.pack("!H", sum_) + body) ^ 0xFFFF or 0xFFFF
            body = body[:place] + struct.pack("!H", sum_) + body[place + 2:]
        left = (len(head), place, gso if many else GSO_NONE, size if many else 0) if partial else None
        return v6, head + body, left, tag

    def frame(self, v6, packet, left, tag):
        """Behind an Ethernet header, and what struct virtio_net_hdr says of it."""
        r = self.random
        source = bytes([2, 9, 9, 9, 9, 9]) if self.odd(30) else self.macs[0]
        tag = b"" if tag is None else struct.pack("!HH", 0x8100, tag)
        header = self.macs[1] + source + tag + struct.pack("!H", 0x86DD if v6 else 0x0800)
        if not left:
            return struct.pack("=BBHHHH", 0, GSO_NONE, 0, 0, 0, 0) + header + packet
        start, place, gso, size = left
        start += len(header)
        return struct.pack("=BBHHHH", NEEDS_CSUM, gso, start + place + 4, size, start, place) + header + packet

    def tunnelled(self, vteps, vtep_mac):
        v6, packet, left, tag = self.packet(False)
        inner = vtep_mac + bytes([2, 0, 0, 0, 1, 9]) + struct.pack("!H", 0x86DD if v6 else 0x0800)
        behind = struct.pack("!BxxxI", 8, 1 << 8) + inner + packet
        port = 0xC000 | self.random.getrandbits(8)
        udp = struct.pack("!HHHH", port, VXLAN, 8 + len(behind), 0)
        tos = self.random.choice([0, 0, 1, 2, 3])
        head = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(udp) + len(behind), 0, 0x4000, 64, UDP, 0)
        head += vteps[0].packed + vteps[1].packed
        head = head[:10] + struct.pack("!H", folded(head) ^ 0xFFFF) + head[12:]
        if left:
            left = (left[0] + len(head) + len(udp) + 8 + len(inner),) + left[1:]
        return self.frame(0, head + udp + behind, left, tag)


def main():
    what, interface, seed, count = sys.argv[1:5]
    macs = [mac(text) for text in sys.argv[5:7]]
    addresses = [ipaddress.ip_address(text) for text in sys.argv[7:11]]
    maker = Maker(int(seed), macs, addresses[:2], addresses[2:])
    vteps = [ipaddress.ip_address(text) for text in sys.argv[11:13]]
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind((interface, 0))
    s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    taken = 0
    for number in range(int(count)):
        frame = maker.frame(*maker.packet(True)) if what == "from-pod" else maker.tunnelled(vteps, mac(sys.argv[13]))
        try:
            s.send(frame)
            taken += 1
        except OSError as error:
            # What is longer than the interface takes, or no GSO packet to the kernel.
            if error.errno not in (22, 90):
                raise
        if number % ROW == ROW - 1:
            time.sleep(PAUSE)
    print(taken)


main()
