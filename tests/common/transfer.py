"""One TCP transfer, timed.

transfer.py receive ADDRESS: takes one connection, answers its end with a byte, and prints how many
segments came twice (DSACKs that this namespace has sent).
transfer.py send ADDRESS BYTES: prints milliseconds until the answer, and segments sent again.
"""

import socket
import struct
import sys
import time

PORT = 5001
# struct tcp_info of include/uapi/linux/tcp.h
TOTAL_RETRANS = 100


def counter(name):
    """A counter of /proc/net/netstat, whose lines come in pairs of names and values."""
    lines = open("/proc/net/netstat", encoding="ascii").read().splitlines()
    for names, values in zip(lines[::2], lines[1::2]):
        found = dict(zip(names.split(), values.split()))
        if name in found:
            return int(found[name])
    return 0


def receive(address):
    """The receiving end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, PORT), family=family)
    print("ready", flush=True)
    connection, _ = server.accept()
    while connection.recv(1 << 16):
        pass
    connection.sendall(b"x")
    connection.close()
    # The last segments may come a second time after the end.
    time.sleep(0.5)
    print(counter("TCPDSACKOldSent") + counter("TCPDSACKOfoSent"))


def send(address, size):
    """The sending end. The clock starts when the connection is there."""
    connection = socket.create_connection((address, PORT), timeout=30)
    data = bytes(size)
    begin = time.monotonic()
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b"x"
    took = time.monotonic() - begin
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (again,) = struct.unpack_from("I", info, TOTAL_RETRANS)
    print(round(took * 1000, 2), again)


if sys.argv[1] == "receive":
    receive(sys.argv[2])
else:
    send(sys.argv[2], int(sys.argv[3]))
