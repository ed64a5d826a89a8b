"""Says to a node that a tunnel's packet was too long for a link: what a router does.

too_big.py NODE MTU DESTINATION SOURCE PORT VNI: the last four are of the packet that is quoted.
"""
import socket
import struct
import sys

node, mtu, destination, source, port, vni = sys.argv[1:]


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


address = socket.inet_aton
quote = struct.pack(">BBHHHBBH", 0x45, 0, 1500, 0, 0x4000, 63, 17, 0) + address(source) + address(destination)
quote += struct.pack(">HHHHII", 50000, int(port), 1480, 0, 0x08000000, int(vni) << 8) + bytes(64)
icmp = struct.pack(">BBHHH", 3, 4, 0, 0, int(mtu)) + quote
icmp = icmp[:2] + struct.pack(">H", checksum(icmp)) + icmp[4:]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
    raw.sendto(icmp, (node, 0))
