"""Drops all that an interface receives, by XDP in its driver, until it is ended: xdp.py INTERFACE; prints "ready"."""

import ctypes
import platform
import signal
import socket
import struct
import sys

# linux/bpf.h, linux/if_link.h
PROG_LOAD, LINK_CREATE = 5, 28
PROG_TYPE_XDP, ATTACH_XDP = 6, 37
DRV_MODE = 1 << 2
NUMBERS = {"x86_64": 321, "aarch64": 280}


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    number = NUMBERS[platform.machine()]
    fd = ctypes.CDLL(None, use_errno=True).syscall(number, command, buffer, 128)
    if fd < 0:
        sys.exit(f"bpf({command}): error {ctypes.get_errno()}")
    return fd


# r0 = XDP_DROP; exit
program = ctypes.create_string_buffer(struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b"GPL")
load = struct.pack("=IIQQ", PROG_TYPE_XDP, 2, ctypes.addressof(program), ctypes.addressof(licence))
fd = bpf(PROG_LOAD, load)
bpf(LINK_CREATE, struct.pack("=IIII", fd, socket.if_nametoindex(sys.argv[1]), ATTACH_XDP, DRV_MODE))
print("ready", flush=True)
signal.pause()
