"""Steady streams between pods whose every piece is checked.

tcp-receive ADDRESS PORT    takes one connection; prints, every 100 ms, the bytes so far
tcp-send ADDRESS PORT       sends numbers in order until it is ended, at most ~40 Mbit/s
udp-receive ADDRESS PORT    prints, every 100 ms, "RECEIVED HIGHEST LATE" (numbers begin with 1; LATE came behind higher ones)
udp-send ADDRESS PORT RATE  sends RATE numbered datagrams a second until it is ended, from one processor: what is sent from
                            another overtakes what is queued at the first
Each ends by itself after two minutes.
"""
import os
import select
import socket
import struct
import sys
import time

END = time.monotonic() + 120
BLOCK = 4096


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def block(number):
    return struct.pack("!Q", number) * (BLOCK // 8)


def say(*words):
    print(*words, flush=True)


def tcp_receive(address, port):
    listener = socket.create_server((address, port), family=family(address))
    say("ready")
    connection, _ = listener.accept()
    rest, number, total, told = b"", 0, 0, 0.0
    connection.settimeout(0.1)
    while time.monotonic() < END:
        try:
            data = connection.recv(1 << 16)
            if not data:
                break
            total += len(data)
            rest += data
            while len(rest) >= BLOCK:
                if rest[:BLOCK] != block(number):
                    sys.exit(f"block {number} is not what was sent")
                rest, number = rest[BLOCK:], number + 1
        except socket.timeout:
            pass
        if time.monotonic() - told >= 0.1:
            told = time.monotonic()
            say(total)


def tcp_send(address, port):
    connection = socket.create_connection((address, port), timeout=100)
    number = 0
    while time.monotonic() < END:
        connection.sendall(block(number))
        number += 1
        time.sleep(0.0005)


def udp_receive(address, port):
    s = socket.socket(family(address), socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    s.bind((address, port))
    s.setblocking(False)
    say("ready")
    received, highest, late, told = 0, 0, 0, 0.0
    while time.monotonic() < END:
        select.select([s], [], [], 0.05)
        try:
            for _ in range(1000):
                number = struct.unpack("!Q", s.recv(64)[:8])[0]
                received += 1
                late += number < highest
                highest = max(highest, number)
        except BlockingIOError:
            pass
        if time.monotonic() - told >= 0.1:
            told = time.monotonic()
            say(received, highest, late)


def udp_send(address, port, rate):
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    s = socket.socket(family(address), socket.SOCK_DGRAM)
    s.connect((address, port))
    begin, sent = time.monotonic(), 0
    while time.monotonic() < END:
        due = int((time.monotonic() - begin) * rate)
        while sent < due:
            sent += 1
            try:
                s.send(struct.pack("!Q", sent) + bytes(24))
            except OSError:
                pass  # An ICMP error came back: the datagram before was lost.
        time.sleep(0.0005)


mode, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if mode == "tcp-receive":
    tcp_receive(address, port)
elif mode == "tcp-send":
    tcp_send(address, port)
elif mode == "udp-receive":
    udp_receive(address, port)
elif mode == "udp-send":
    udp_send(address, port, int(sys.argv[4]))
