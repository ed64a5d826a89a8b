"""UDP between pods, every byte compared.

udp.py echo ADDRESS PORT            answers each datagram with its complement
udp.py ask ADDRESS PORT SIZE...     sends these sizes and compares the answers
udp.py count ADDRESS PORT DATAGRAMS receives datagrams of `send`
udp.py send ADDRESS PORT FLOWS EACH sends from as many ports, so many each
echo-cut and ask-cut let the network cut datagrams into fragments.
"""

import json
import socket
import sys
import time

TRIES = 4
FLOW = 8  # bytes of flow and sequence in front of the pattern
COMPLEMENT = bytes(255 - i for i in range(256))
# linux/in.h and linux/in6.h; the kernel must not fragment what does not fit, and asks that others do not.
MTU_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
DISCOVER_DONT, DISCOVER_DO = 0, 2
DISCOVER = DISCOVER_DONT if sys.argv[1].endswith("-cut") else DISCOVER_DO


def pattern(size, seed=0):
    return bytes((size * 131 + seed * 17 + i * 7 + (i >> 8)) & 255 for i in range(size))


def udp(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    s.setsockopt(*MTU_DISCOVER[family], DISCOVER)
    return s


def echo(address, port):
    s = udp(address)
    s.bind((address, int(port)))
    print("ready", flush=True)
    while True:
        data, peer = s.recvfrom(65535)
        s.sendto(data.translate(COMPLEMENT), peer)


def ask(address, port, *sizes):
    s = udp(address)
    s.connect((address, int(port)))
    s.settimeout(1)
    result = {"answered": 0, "lost": 0}
    for size in map(int, sizes):
        want = pattern(size).translate(COMPLEMENT)
        for _ in range(TRIES):
            s.send(pattern(size))
            try:
                # A late answer to the try before is of the same size, and good.
                while len(data := s.recv(65535)) != size:
                    pass
            except TimeoutError:
                result["lost"] += 1
                continue
            if data != want:
                at = next(i for i in range(size) if data[i] != want[i])
                sys.exit(f"{size} bytes came back different from byte {at} on")
            result["answered"] += 1
            break
    print(json.dumps(result))


def count(address, port, datagrams):
    s = udp(address)
    s.bind((address, int(port)))
    s.settimeout(10)
    print("ready", flush=True)
    seen, bad = set(), 0
    while len(seen) < int(datagrams):
        try:
            data, peer = s.recvfrom(65535)
        except TimeoutError:
            break
        s.settimeout(2)
        number = int.from_bytes(data[:FLOW], "big")
        bad += data[FLOW:] != pattern(len(data) - FLOW, number)
        seen.add((peer[1], number))
    print(json.dumps({"received": len(seen), "flows": len({port for port, _ in seen}), "bad": bad}))


def send(address, port, flows, each):
    sockets = [udp(address) for _ in range(int(flows))]
    for s in sockets:
        s.connect((address, int(port)))
    for number in range(int(each)):
        data = number.to_bytes(FLOW, "big") + pattern(64 + number, number)
        for at, s in enumerate(sockets):
            try:
                s.send(data)
            except OSError:
                pass  # An ICMP error came back; whoever counts will miss this one.
            # Rings hold hundreds: what is lost here would say nothing.
            if at % 16 == 0:
                time.sleep(0.001)


def flood(address):
    s = udp(address)
    to, data = (address, 9), bytes(64)
    while True:
        try:
            s.sendto(data, to)
        except OSError:
            pass  # Its own queue is full, or nobody listens there.


if __name__ == "__main__":
    {"echo": echo, "ask": ask, "count": count, "send": send, "flood": flood}[sys.argv[1].removesuffix("-cut")](*sys.argv[2:])
