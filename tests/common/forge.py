"""Packets that nobody should send, and who hears them.

forge.py tunnel FROM TO MAC VNI INNER_FROM INNER_TO WORD
    a VXLAN packet from one of this host's addresses, a datagram with WORD inside
forge.py odd KIND FROM TO MAC VNI INNER_FROM INNER_TO WORD
    one that is odd in some way: the kinds are below
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
forge.py hear ADDRESS...
    prints "ready", then each word that comes to port 7777 of these addresses
"""

import ipaddress
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
    if kind == "reserved":  # RFC 7348, section 5: ignored on receipt.
        flags, number = 0xFFFFFFFF, number | 0xFF
    if kind == "vni":
        number += 1 << 8
    if kind == "padded":
        inner += bytes(20)
    data = struct.pack("!II", flags, number) + inner
    cuts = {"header": 4, "runt": 8 + 10, "ip": 8 + 14 + 12}
    data = data[: cuts.get(kind)]
    with socket.socket(family(source), socket.SOCK_DGRAM) as out:
        if kind == "unsummed":
            out.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        out.bind((source, 0))
        out.sendto(data, (to, VXLAN))


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
    commands = {"tunnel": tunnel, "odd": odd, "optioned": optioned, "frame": frame, "tagged": tagged, "claim": claim, "advertise": advertise, "say": say, "hear": hear}
    commands[sys.argv[1]](*sys.argv[2:])
