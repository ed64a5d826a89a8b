"""Packets that nobody should send, and who hears them.

forge.py tunnel FROM TO MAC VNI INNER_FROM INNER_TO WORD
    a VXLAN packet from one of this host's addresses, a datagram with WORD inside
forge.py odd KIND FROM TO MAC VNI INNER_FROM INNER_TO WORD
    one that is odd in some way: the kinds are below
forge.py varied KIND INTERFACE MAC_FROM MAC_TO FROM TO WORD
    a frame from a pod that is odd in some way: the kinds are below
forge.py optioned FROM TO WORD
    an honest datagram with IPv4 options or an IPv6 extension header
forge.py frame INTERFACE MAC_FROM MAC_TO FROM TO WORD
    a datagram in a frame that is made by hand
forge.py advertise INTERFACE MAC_FROM MAC_TO
    a router advertisement
forge.py tagged INTERFACE MAC_FROM MAC_TO FROM TO WORD
    the same with a VLAN tag
forge.py claim INTERFACE MAC_FROM ADDRESS
    a gratuitous ARP
forge.py say FROM TO WORD
    an honest datagram
forge.py probe INTERFACE MAC_FROM MAC_TO FROM WORD TO...
    ICMPv6 of many types, hop limits, contents and extension headers, WORD in each; prints how many
forge.py hear6
    prints "ready", then each word that begins with "leak" in any ICMPv6 packet for this host
forge.py hear ADDRESS...
    prints "ready", then each word that comes to port 7777 of these addresses
"""

import ipaddress
import re
import select
import socket
import struct
import sys

PORT = 7777
VXLAN = 8472


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source, to, protocol, payload_of):
    """An IP packet; payload_of(pseudo header) gives what is inside."""
    source, to = ipaddress.ip_address(source), ipaddress.ip_address(to)
    length = len(payload_of(b""))
    if source.version == 4:
        pseudo = source.packed + to.packed + struct.pack("!BBH", 0, protocol, length)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, protocol, 0)
        header += source.packed + to.packed
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        return 0x0800, header + payload_of(pseudo)
    pseudo = source.packed + to.packed + struct.pack("!IHBB", length, 0, 0, protocol)
    hops = 255 if protocol == 58 else 64
    header = struct.pack("!IHBB", 6 << 28, length, protocol, hops)
    return 0x86DD, header + source.packed + to.packed + payload_of(pseudo)


def datagram(word, port=PORT):
    def payload(pseudo):
        data = struct.pack("!HHHH", 4321, port, 8 + len(word), 0) + word
        good = checksum(pseudo + data) or 0xFFFF
        return data[:6] + struct.pack("!H", good) + data[8:]

    return payload


def advertisement(pseudo):
    data = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    return data[:2] + struct.pack("!H", checksum(pseudo + data)) + data[4:]


def ethernet(to, source, what):
    kind, data = what
    return mac(to) + mac(source) + struct.pack("!H", kind) + data


def send_frame(interface, frame):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        raw.send(frame)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tunnel(source, to, inner_mac, vni, inner_from, inner_to, word):
    inner = packet(inner_from, inner_to, 17, datagram(word.encode()))
    frame = ethernet(inner_mac, "02:00:00:00:66:66", inner)
    header = struct.pack("!II", 0x08000000, int(vni) << 8)
    with socket.socket(family(source), socket.SOCK_DGRAM) as out:
        out.bind((source, 0))
        out.sendto(header + frame, (to, VXLAN))


def with_options(what):
    """The same packet with options that say nothing."""
    kind, data = what
    if kind == 0x86DD:
        length = struct.unpack("!H", data[4:6])[0] + 8
        extension = bytes([data[6], 0, 1, 4, 0, 0, 0, 0])
        return kind, data[:4] + struct.pack("!HB", length, 60) + data[7:40] + extension + data[40:]
    length = struct.unpack("!H", data[2:4])[0] + 4
    header = bytes([0x46]) + data[1:2] + struct.pack("!H", length) + data[4:10] + bytes(2) + data[12:20] + b"\1\1\1\1"
    return kind, header[:10] + struct.pack("!H", checksum(header)) + header[12:] + data[20:]


def odd(kind, source, to, inner_mac, vni, inner_from, inner_to, word):
    what = packet(inner_from, inner_to, 17, datagram(word.encode()))
    if kind == "options":
        what = with_options(what)
    if kind == "long":  # It says that it is longer than it is.
        at = 2 if what[0] == 0x0800 else 4
        data = what[1]
        length = struct.unpack("!H", data[at : at + 2])[0] + 40
        data = data[:at] + struct.pack("!H", length) + data[at + 2 :]
        if what[0] == 0x0800:
            data = data[:10] + bytes(2) + data[12:]
            data = data[:10] + struct.pack("!H", checksum(data[:20])) + data[12:]
        what = what[0], data
    if kind == "sum" and what[0] == 0x0800:
        what = what[0], what[1][:10] + bytes([what[1][10] ^ 1]) + what[1][11:]
    if kind == "vlan":
        what = 0x8100, struct.pack("!HH", 7, what[0]) + what[1]
    if kind == "mac":
        inner_mac = "02:00:00:00:66:01"
    inner = ethernet(inner_mac, "02:00:00:00:66:66", what)
    flags, number = 0x08000000, int(vni) << 8
    if kind == "flag":
        flags = 0
    flags |= {"gbp": 0x80000009, "gpe": 0x04000003, "reserved-flag": 0x40000000}.get(kind, 0)
    if kind == "reserved-byte":
        number |= 1
    if kind == "vni":
        number += 1 << 8
    if kind == "padded":
        inner += bytes(20)
    data = struct.pack("!II", flags, number) + inner
    cuts = {"header": 4, "runt": 8 + 10, "ip": 8 + 14 + 12}
    data = data[: cuts.get(kind)]
    if kind in ("wrong-sum", "right-sum"):
        return send_summed(source, to, data, 1 if kind == "wrong-sum" else 0)
    with socket.socket(family(source), socket.SOCK_DGRAM) as out:
        if kind == "unsummed":
            out.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        out.bind((source, 0))
        out.sendto(data, (to, VXLAN))


def send_summed(source, to, data, error):
    """A datagram whose checksum is computed here, and off by so much."""
    length = 8 + len(data)
    header = struct.pack("!HHHH", 50000, VXLAN, length, 0)
    source_bytes, to_bytes = (ipaddress.ip_address(a).packed for a in (source, to))
    good = checksum(source_bytes + to_bytes + struct.pack("!BBH", 0, 17, length) + header + data)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as out:
        out.bind((source, 0))
        out.sendto(header[:6] + struct.pack("!H", good ^ error or 0xFFFF) + data, (to, 0))


V4_OPTIONS = {
    "loose-route": bytes([131, 7, 4, 10, 244, 2, 2, 0]),
    "strict-route": bytes([137, 7, 4, 10, 244, 2, 2, 0]),
    "bad-length": bytes([200, 9, 0, 0]),
    "zero-length": bytes([200, 0, 0, 0]),
    "cut-option": bytes([1, 1, 1, 7]),
    "bad-pointer": bytes([7, 7, 3, 0, 0, 0, 0, 0]),
    "record-route": bytes([7, 7, 4, 0, 0, 0, 0, 0]),
    "timestamp": bytes([68, 8, 5, 0, 0, 0, 0, 0]),
    "bad-timestamp": bytes([68, 8, 4, 0, 0, 0, 0, 0]),
    "unknown-option": bytes([200, 4, 0, 0]),
    "nothing": bytes([1, 1, 1, 0]),
}
HOP_OPTIONS = {
    "hop-skip": bytes([0x1E, 4, 0, 0, 0, 0]),
    "hop-discard": bytes([0x5E, 4, 0, 0, 0, 0]),
    "hop-answer": bytes([0x9E, 4, 0, 0, 0, 0]),
    "hop-answer-one": bytes([0xDE, 4, 0, 0, 0, 0]),
    "hop-long": bytes([0x1E, 5, 0, 0, 0, 0]),
    "hop-pad": bytes([1, 4, 0, 0, 0, 0]),
    "hop-pad-data": bytes([1, 4, 0, 0, 0, 1]),
    "hop-pad-much": bytes([1, 6, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0]),
    "hop-many": bytes([0x1E, 0] * 9 + [1, 2, 0, 0]),
    "hop-alert-long": bytes([5, 3, 0, 0, 0, 0]),
}
TAGS = {"priority": [0], "priorities": [0, 0], "vlan": [7], "priority-vlan": [0, 7], "three": [0, 0, 0]}


def varied(kind, interface, mac_from, mac_to, source, to, word):
    number, data = packet(source, to, 17, datagram(word.encode()))
    if kind in V4_OPTIONS:
        options = V4_OPTIONS[kind]
        length = struct.unpack("!H", data[2:4])[0] + len(options)
        header = bytes([0x45 + len(options) // 4]) + data[1:2] + struct.pack("!H", length) + data[4:10] + bytes(2) + data[12:20] + options
        data = header[:10] + struct.pack("!H", checksum(header)) + header[12:] + data[20:]
    if kind in HOP_OPTIONS:
        options = HOP_OPTIONS[kind]
        extension = bytes([data[6], (len(options) + 2) // 8 - 1]) + options
        length = struct.unpack("!H", data[4:6])[0] + len(extension)
        data = data[:4] + struct.pack("!HB", length, 0) + data[7:40] + extension + data[40:]
    if kind in TAGS:
        for tag in reversed(TAGS[kind]):
            number, data = 0x8100, struct.pack("!HH", tag, number) + data
    if kind == "foreign-mac":
        mac_to = "02:00:00:00:66:02"
    if kind == "zero-mac":
        mac_to = "00:00:00:00:00:00"
    send_frame(interface, ethernet(mac_to, mac_from, (number, data)))


def optioned(source, to, word):
    with socket.socket(family(source), socket.SOCK_DGRAM) as out:
        if family(source) == socket.AF_INET:
            out.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1\1\1\1")
        else:
            nothing = bytes([0, 0, 1, 4, 0, 0, 0, 0])
            out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, nothing)
        out.bind((source, 0))
        out.sendto(word.encode(), (to, PORT))


def frame(interface, mac_from, mac_to, source, to, word):
    what = packet(source, to, 17, datagram(word.encode()))
    send_frame(interface, ethernet(mac_to, mac_from, what))


def tagged(interface, mac_from, mac_to, source, to, word):
    kind, data = packet(source, to, 17, datagram(word.encode()))
    what = 0x8100, struct.pack("!HH", 7, kind) + data
    send_frame(interface, ethernet(mac_to, mac_from, what))


def claim(interface, mac_from, address):
    address = ipaddress.ip_address(address).packed
    many = bytes([255] * 6)
    for operation in (1, 2):
        data = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        data += mac(mac_from) + address + many + address
        send_frame(interface, ethernet("ff:ff:ff:ff:ff:ff", mac_from, (0x0806, data)))


def advertise(interface, mac_from, mac_to):
    what = packet("fe80::66", "ff02::1", 58, advertisement)
    send_frame(interface, ethernet(mac_to, mac_from, what))


def extended(kind, following):
    """An IPv6 extension header, and the number of the first one."""
    if kind == "none":
        return following, b""
    number = {"hop": 0, "options": 60, "fragment": 44, "routing": 43}[kind]
    if kind == "fragment":  # The only one (RFC 6946).
        return number, bytes([following, 0, 0, 0, 0, 0, 0, 7])
    if kind == "routing":  # Nothing left to do.
        return number, bytes([following, 0, 4, 0, 0, 0, 0, 0])
    return number, bytes([following, 0, 1, 4, 0, 0, 0, 0])


def probe(interface, mac_from, mac_to, source, word, *targets):
    frames = []
    for to in targets:
        source_bytes, to_bytes = (ipaddress.ip_address(a).packed for a in (source, to))
        for kind in (128, 130, 131, 133, 134, 135, 136, 137, 143, 200):
            for target in (bytes(16), to_bytes):
                for hops in (255, 64, 2):
                    for header in ("none", "hop", "options", "fragment", "routing"):
                        said = f"{word}-{kind}-{hops}-{header}".encode() + b"\0"
                        # Flags, target, an option with the word: a sound solicitation but for that.
                        data = bytes([kind, 0, 0, 0, 0, 0, 0, 0]) + target + bytes([200, 8]) + said.ljust(62, b"\0")
                        pseudo = source_bytes + to_bytes + struct.pack("!IHBB", len(data), 0, 0, 58)
                        data = data[:2] + struct.pack("!H", checksum(pseudo + data)) + data[4:]
                        first, extension = extended(header, 58)
                        packed = struct.pack("!IHBB", 6 << 28, len(extension) + len(data), first, hops)
                        frames.append(ethernet(mac_to, mac_from, (0x86DD, packed + source_bytes + to_bytes + extension + data)))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for frame in frames:
            raw.send(frame)
    print(len(frames))


def hear6():
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as heard:
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        print("ready", flush=True)
        while True:
            for word in re.findall(rb"leak[-\w]*", heard.recv(2048)):
                print(word.decode(), flush=True)


def say(source, to, word):
    with socket.socket(family(source), socket.SOCK_DGRAM) as out:
        out.bind((source, 0))
        out.sendto(word.encode(), (to, PORT))


def hear(*addresses):
    sockets = []
    for address in addresses:
        heard = socket.socket(family(address), socket.SOCK_DGRAM)
        heard.bind((address, PORT))
        sockets.append(heard)
    print("ready", flush=True)
    while True:
        for heard in select.select(sockets, [], [])[0]:
            print(heard.recv(2048).decode(errors="replace"), flush=True)


if __name__ == "__main__":
    commands = {"tunnel": tunnel, "odd": odd, "varied": varied, "optioned": optioned, "frame": frame, "tagged": tagged, "claim": claim, "advertise": advertise, "say": say, "probe": probe, "hear6": hear6, "hear": hear}
    commands[sys.argv[1]](*sys.argv[2:])
