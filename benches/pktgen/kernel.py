#!/usr/bin/env python3
"""Sends with the kernel's own packet generator (/proc/net/pktgen) and reports as `viaduct pktgen` does.

UDP over IPv4, only on the interface that is given. What arrives is read from the link counters of --receive:
all that came in there meanwhile. Wants root, and a kernel with CONFIG_NET_PKTGEN.

Not yet run on a kernel that has pktgen: its tests put a directory in the place of /proc/net/pktgen.
"""
import argparse
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True

import plan  # noqa: E402 (beside this file, which stays alone there)

# Tests put a directory of plain files here.
ROOT = os.environ.get("PKTGEN_ROOT", "/proc/net/pktgen")
# Seconds that the last packets have to arrive.
SETTLE = 0.2


class Refused(Exception):
    """What is wrong, and what to do next."""


class Interrupted(Exception):
    """A signal wants the run to end."""


def write(name, command):
    """Gives pktgen one command."""
    path = os.path.join(ROOT, name)
    try:
        # Not open(): it looks for the end of what it appends to, which pktgen's files have not.
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, f"{command}\n".encode("ascii"))
        finally:
            os.close(file)
    except OSError as error:
        raise Refused(f"pktgen refused '{command}' in {path}: {error.strerror}. {last_result(name)}") from error


def read(name):
    """What pktgen says in one of its files."""
    path = os.path.join(ROOT, name)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from error


def last_result(name):
    """What pktgen said to the last command, if it can be read."""
    try:
        return plan.result(read(name)) or ""
    except Refused:
        return ""


def link(namespace, name):
    """An interface, its addresses and counters."""
    inside = ["nsenter", f"--net={namespace_path(namespace)}"] if namespace else []
    command = [*inside, "ip", "-json", "-statistics", "address", "show", "dev", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        where = f" in namespace {namespace}" if namespace else ""
        raise Refused(f"no interface {name}{where}: {done.stderr.strip()}; ip link shows which there are")
    return json.loads(done.stdout)[0]


def namespace_path(namespace):
    """A name of ip netns, or a path."""
    path = namespace if "/" in namespace else f"/run/netns/{namespace}"
    if not os.path.exists(path):
        raise Refused(f"no network namespace {namespace}: ip netns shows which there are")
    return path


def check_pktgen(cpus):
    """pktgen is there, has a thread for each processor, and nothing that would be sent beside."""
    if not os.path.exists(os.path.join(ROOT, "pgctrl")):
        raise Refused(
            f"this kernel has no pktgen ({ROOT}/pgctrl): modprobe pktgen; if there is no such module, the kernel is "
            "built without CONFIG_NET_PKTGEN, and viaduct pktgen needs nothing of it"
        )
    threads = sorted(name for name in os.listdir(ROOT) if name.startswith("kpktgend_"))
    for cpu in cpus:
        if f"kpktgend_{cpu}" not in threads:
            raise Refused(f"pktgen has no thread on processor {cpu}, but {', '.join(threads) or 'none'}")
    for thread in threads:
        if devices := plan.devices(read(thread)):
            raise Refused(
                f"pktgen's {thread} already has {', '.join(devices)}, which would be sent on, too: if nobody needs "
                f"them, echo rem_device_all > {ROOT}/{thread}"
            )


def sender(options):
    """The interface to send on, fit for it."""
    interface = link(None, options.interface)
    if "UP" not in interface["flags"] or "LOWER_UP" not in interface["flags"]:
        raise Refused(f"{options.interface} is down or has no carrier: ip link set {options.interface} up")
    if plan.largest(options.size) > interface["mtu"] + plan.ETHERNET:
        raise Refused(f"--size {options.size} does not fit {options.interface}, whose MTU is {interface['mtu']}")
    if options.source is None:
        found = [a["local"] for a in interface["addr_info"] if a["family"] == "inet"]
        if not found:
            raise Refused(f"{options.interface} has no IPv4 address: say --source")
        options.source = ipaddress.IPv4Address(found[0])


def received(options):
    """Packets and bytes that have come in at the receiver so far."""
    counters = link(options.receive_netns, options.receive)["stats64"]["rx"]
    return counters["packets"], counters["bytes"]


def start(seconds):
    """Has all threads send, and stop after so long. Returns whether a signal ended it."""
    problems = []

    def begin():
        # Returns when all threads have stopped.
        try:
            write("pgctrl", "start")
        except Refused as error:
            problems.append(error)

    writer = threading.Thread(target=begin)
    writer.start()
    interrupted = False
    try:
        writer.join(seconds)
    except Interrupted:
        interrupted = True
    write("pgctrl", "stop")
    writer.join(10)
    if writer.is_alive():
        raise Refused("pktgen does not stop: echo reset > " + os.path.join(ROOT, "pgctrl"))
    if problems:
        raise problems[0]
    return interrupted


def run(options):
    """One run; returns the report."""
    check_pktgen(options.cpus)
    sender(options)
    devices = {cpu: f"{options.interface}@{cpu}" for cpu in options.cpus}
    settings = plan.settings(options)
    try:
        for cpu, device in devices.items():
            write(f"kpktgend_{cpu}", f"add_device {device}")
        for device, commands in zip(devices.values(), settings):
            for command in commands:
                write(device, command)
        before = received(options) if options.receive else None
        interrupted = start(options.duration)
        time.sleep(SETTLE)
        after = received(options) if options.receive else None
        outcomes = [plan.outcome(read(device)) for device in devices.values()]
    finally:
        for cpu in devices:
            write(f"kpktgend_{cpu}", "rem_device_all")
    return plan.report(options, outcomes, before, after, interrupted)


def arguments():
    """The words of `viaduct pktgen`, as far as the kernel's can do the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--interface", required=True, help="the interface to send on")
    parser.add_argument("--netns", help="where it is: a name of ip netns, or a path")
    parser.add_argument("--receive", help="the interface where packets arrive in the end")
    parser.add_argument("--receive-netns", help="where that is")
    parser.add_argument("--gateway", required=True, type=plan.mac, help="MAC that frames are sent to")
    parser.add_argument("--source", type=ipaddress.IPv4Address, help="source address, if not the interface's")
    parser.add_argument("--destination", required=True, type=ipaddress.IPv4Address, help="the first destination")
    parser.add_argument("--destinations", type=plan.positive, default=1, help="how many, one after the other")
    parser.add_argument("--flows", type=plan.positive, default=1, help="flows, which take turns")
    parser.add_argument("--random", action="store_true", help="flows at random, not in turn")
    parser.add_argument("--train", type=plan.positive, default=1, help="packets to a destination in a row")
    parser.add_argument("--size", type=plan.size, default=64, help="bytes of a frame without its checksum, or imix")
    parser.add_argument("--rate", type=plan.positive, help="packets a second; as many as possible if not given")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds")
    parser.add_argument("--cpus", type=plan.cpus, default=[0], help="processors to send from: 0 or 0,2")
    parser.add_argument("--json", action="store_true", help="report for programs")
    return parser.parse_args()


def end(_number, _frame):
    """A signal's handler."""
    raise Interrupted


def main():
    """The command line."""
    options = arguments()
    try:
        plan.check(options)
        if options.netns:
            # pktgen is one for each namespace: go there, and come again.
            words = re.sub(r"(?:^|\0)--netns(?:=|\0)[^\0]*", "", "\0".join(sys.argv[1:])).strip("\0").split("\0")
            os.execvp("nsenter", ["nsenter", f"--net={namespace_path(options.netns)}", sys.executable, __file__, *words])
        signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGTERM, end)
        report = run(options)
    except (Refused, plan.Refused) as error:
        sys.exit(f"kernel.py: {error}")
    except Interrupted:
        sys.exit("kernel.py: ended by a signal before anything was sent")
    print(json.dumps(report) if options.json else plan.text(report))


if __name__ == "__main__":
    main()
