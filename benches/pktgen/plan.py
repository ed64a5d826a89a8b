"""What the kernel's pktgen is told, what it answers, and the report: without touching anything."""
import argparse
import re

ETHERNET = 14
# Simple IMIX, as `viaduct pktgen` sends it: twelve packets, seven of them short.
IMIX = ((64, 7), (594, 4), (1514, 1))
FIRST_PORT = 1024
PORTS = 65536 - FIRST_PORT
DESTINATION_PORT = 9
# The kernel remembers no more flows.
MAX_TRAINS = 65536


class Refused(Exception):
    """What is wrong, and what to do next."""


def positive(word):
    """A number from 1 on."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is no number from 1 on")
    return int(word)


def size(word):
    """Bytes of a frame, or imix."""
    if word == "imix":
        return word
    if not word.isdecimal() or not 60 <= int(word) <= 9014:
        raise argparse.ArgumentTypeError(f"{word} is neither imix nor a length from 60 to 9014")
    return int(word)


def mac(word):
    """A MAC address, as pktgen wants it."""
    if not re.fullmatch(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", word):
        raise argparse.ArgumentTypeError(f"{word} is no MAC address like 02:00:00:00:00:01")
    return word.lower()


def cpus(words):
    """Numbers of processors."""
    if not re.fullmatch(r"\d+(,\d+)*", words):
        raise argparse.ArgumentTypeError(f"{words} is no list of processors like 0,2")
    numbers = [int(word) for word in words.split(",")]
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"{words} names a processor twice")
    return numbers


def largest(length):
    """The longest frame."""
    return max(bytes_ for bytes_, _ in IMIX) if length == "imix" else length


def ports_each(options):
    """Source ports that each processor's flows have."""
    flows = options.flows // len(options.cpus)
    # At random, all pairs come; in turn, ports and addresses step together, so ports must tell all flows apart.
    return flows // options.destinations if options.random or options.train > 1 else flows


def check(options):
    """Refuses what pktgen cannot send as it was asked for."""
    groups = len(options.cpus) * options.destinations
    if options.duration <= 0:
        raise Refused("--duration must be more than 0 seconds")
    if options.flows % groups:
        raise Refused(
            f"--flows {options.flows} cannot be divided evenly among {options.destinations} destinations on "
            f"{len(options.cpus)} processors: take a multiple of {groups}"
        )
    if ports_each(options) * len(options.cpus) > PORTS:
        raise Refused(
            f"--flows {options.flows} needs more than the {PORTS} source ports there are: fewer flows, or --random "
            "with more --destinations"
        )
    if options.train > 1 and (options.random or options.destinations > MAX_TRAINS):
        raise Refused(f"--train goes with at most {MAX_TRAINS} destinations in turn, not with --random")
    if options.rate and options.rate < len(options.cpus):
        raise Refused("--rate must be at least one packet a second for each processor")
    if int(options.destination) + options.destinations > 1 << 32:
        raise Refused(f"there are no {options.destinations} addresses from {options.destination} on")


def settings(options):
    """For each processor: the commands for its device, in their order."""
    return [commands(options, index) for index in range(len(options.cpus))]


def commands(options, index):
    """For the device of one processor: flows, rate and queue are its part of all."""
    ports = ports_each(options)
    first = FIRST_PORT + index * ports
    last = options.destination + options.destinations - 1
    told = ["count 0", "clone_skb 0", f"queue_map_min {index}", f"queue_map_max {index}"]
    if options.size == "imix":
        told.append("imix_weights " + " ".join(f"{length},{weight}" for length, weight in IMIX))
    else:
        told.append(f"pkt_size {options.size}")
    told += [f"dst_mac {options.gateway}", f"src_min {options.source}", f"src_max {options.source}"]
    told += [f"dst_min {options.destination}", f"dst_max {last}"]
    # The upper end of ports is not among them; of addresses it is.
    told += [f"udp_src_min {first}", f"udp_src_max {first + ports}"]
    told += [f"udp_dst_min {DESTINATION_PORT}", f"udp_dst_max {DESTINATION_PORT}", "flag NO_TIMESTAMP"]
    if options.random:
        told += ["flag UDPSRC_RND", "flag IPDST_RND"]
    if options.train > 1:
        told += ["flag FLOW_SEQ", f"flows {options.destinations}", f"flowlen {options.train}"]
    if options.rate:
        told.append(f"ratep {options.rate // len(options.cpus)}")
    else:
        told.append("delay 0")
    return told


def devices(text):
    """What a thread's file lists as its devices."""
    found = re.findall(r"^(?:Running|Stopped):(.*)$", text, re.MULTILINE)
    return [name for line in found for name in line.split()]


def result(text):
    """The last command's or run's result."""
    found = re.search(r"^Result: (.*(?:\n .*)?)", text, re.MULTILINE)
    return " ".join(found[1].split()) if found else None


def outcome(text):
    """Packets, bytes and seconds of a device's file after a run."""
    said = result(text)
    if not said:
        raise Refused("pktgen shows no result of the run")
    found = re.match(r"OK: (\d+)\(c\d+\+d\d+\) usec, (\d+) \((\d+)byte,\d+frags\)", said)
    if not found:
        raise Refused(f"pktgen did not send, or says so in a way that is not known: {said}")
    micros, packets, length = (int(n) for n in found.groups())
    mixed = re.search(r"imix_size_counts: (.*)", text)
    if mixed:
        pairs = [pair.split(",") for pair in mixed[1].split()]
        sent_bytes = sum(int(length) * int(count) for length, count in pairs)
    else:
        sent_bytes = packets * length
    return {
        "seconds": micros / 1e6,
        "packets": packets,
        "bytes": sent_bytes,
    }


def report(options, outcomes, before, after, interrupted):
    """As `viaduct pktgen --json`; what is not measured is null."""
    seconds = max(o["seconds"] for o in outcomes)
    sent = sum(o["packets"] for o in outcomes)
    got = (after[0] - before[0], after[1] - before[1]) if before else (None, None)

    def rate(count):
        if count is None:
            return None
        return count / seconds if seconds > 0 else 0.0

    return {
        "wanted_per_s": options.rate,
        "seconds": seconds,
        "sent": sent,
        "sent_bytes": sum(o["bytes"] for o in outcomes),
        "sent_per_s": rate(sent),
        "received": got[0],
        "received_bytes": got[1],
        "received_per_s": rate(got[0]),
        "lost": None if got[0] is None else max(0, sent - got[0]),
        "reordered": None,
        "foreign": None,
        "latency_us": None,
        "interrupted": interrupted,
    }


def text(told):
    """A report for people."""

    def line(what, count, rate, length):
        gigabits = length * 8e-9 / told["seconds"] if told["seconds"] > 0 else 0.0
        return f"{what:<10} {count:>12} packets, {rate:.0f}/s, {gigabits:.3f} Gbit/s"

    lines = [line("sent", told["sent"], told["sent_per_s"], told["sent_bytes"])]
    if told["wanted_per_s"] and told["sent_per_s"] < told["wanted_per_s"] * 0.98:
        lines.append(f"the rate of {told['wanted_per_s']}/s was not reached: the generator, or an interface, is the limit")
    if told["received"] is None:
        lines.append("nobody counted what arrived: --receive names an interface that does")
    else:
        lines.append(line("received", told["received"], told["received_per_s"], told["received_bytes"]))
        share = 100 * told["lost"] / told["sent"] if told["sent"] else 0.0
        lines.append(f"{'lost':<10} {told['lost']:>12} packets, {share:.4f} %")
    if told["interrupted"]:
        lines.append("ended by a signal")
    return "\n".join(lines)
