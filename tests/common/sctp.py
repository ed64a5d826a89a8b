"""Sends one SCTP INIT from a raw socket; prints the CRC32c that has to arrive.

sctp.py SOURCE DESTINATION TAG CRC   CRC is zero, right or wrong
"""

import socket
import struct
import sys

IPPROTO_SCTP = 132


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def main(source, destination, tag, kind):
    # RFC 9260, 3.3.2: one INIT chunk, verification tag zero.
    init = struct.pack("!BBHIIHHI", 1, 0, 20, int(tag), 65536, 1, 1, 7)
    header = struct.pack("!HHI", 40000, 5000, 0)
    crc = crc32c(header + bytes(4) + init)
    field = struct.pack("<I", {"zero": 0, "right": crc, "wrong": crc ^ 0x01020304}[kind])
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    s = socket.socket(family, socket.SOCK_RAW, IPPROTO_SCTP)
    s.bind((source, 0))
    s.sendto(header + field + init, (destination, 0))
    print(crc.to_bytes(4, "little").hex() if kind == "zero" else field.hex())


if __name__ == "__main__":
    main(*sys.argv[1:])
