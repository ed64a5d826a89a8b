"""Packets that nobody should send, and who hears them.

forge.py tunnel FROM TO MAC VNI INNER_FROM INNER_TO WORD
    a VXLAN packet from one of this host's addresses, a datagram with WORD inside
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
    commands = {"tunnel": tunnel, "frame": frame, "tagged": tagged, "claim": claim, "advertise": advertise, "say": say, "hear": hear}
    commands[sys.argv[1]](*sys.argv[2:])
