#!/usr/bin/env python3
"""Runs the project's tests and says at the end what failed, and how to run it again.

run.py once [ARGUMENTS OF CARGO TEST]    all of the workspace, or what the arguments choose
run.py repeat N [--busy] [NAME...]       test binaries or tests of these names N times; all if none is given

The last line is "P passed, F failed". The exit code is 0 when nothing failed.
"""

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / "target" / "repeat"
CARGO = ["cargo", "test", "--workspace", "--locked"]
# What has to hold whatever hooks a router has: these are run again with hooks in XDP, and with hooks in tc that leave all
# to workers (`Hooks::usual` of tests/common).
CORE = ["overlay", "forgery", "exceptions", "failover", "slow_path", "networks", "interop", "outer_ipv6", "gossip"]
HOOKS = ["xdp", "tc"]
# Seconds after which a test binary that is repeated is ended.
PATIENCE = 1800

TEST = re.compile(r"^test (\S+)(?: - .*)? \.\.\. (ok|FAILED)\b")
RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;")
RERUN = re.compile(r"to rerun pass `(.*)`")


def summary(passed, failed):
    """The last line, and the exit code."""
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


class Once:
    """What cargo says, as it comes."""

    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.failures = []
        self.names = []
        self.listing = False
        self.counted = True

    def line(self, line):
        """Takes one line."""
        if line.startswith("     Running ") or line.startswith("   Doc-tests "):
            self.names, self.counted = [], False
        elif line == "failures:":
            # The last list of a binary has the names alone.
            self.names, self.listing = [], True
        elif self.listing and line.startswith("    "):
            self.names.append(line.split(" (line ")[0].split(" - ")[0].strip())
        elif result := RESULT.match(line):
            self.passed += int(result[1])
            self.failed += int(result[2])
            self.listing, self.counted = False, True
        elif rerun := RERUN.search(line):
            self.ended_badly(rerun[1])
        elif line and not line.startswith(" "):
            self.listing = False

    def ended_badly(self, arguments):
        """A binary failed; `arguments` choose it."""
        if not self.counted:
            # It ended without a result: it crashed, or something ended it.
            self.failed += 1
            self.names = []
            self.counted = True
        doc = arguments.endswith("--doc")
        for name in self.names if self.names and not doc else [None]:
            again = f"./dev test {arguments}" + (f" -- --exact {name}" if name else "")
            self.failures.append((name or f"{arguments}: some, or all", again))
        self.names = []


def run_cargo(arguments, hooks=None):
    """Runs `cargo test`, showing what it says; with other hooks than usual."""
    once = Once()
    # Only the root package's tests have routers.
    cargo = ["cargo", "test", "--locked", "-p", "viaduct"] if hooks else CARGO
    command = cargo + ["--no-fail-fast"] + arguments
    environment = dict(os.environ, **({"VIADUCT_TEST_HOOKS": hooks} if hooks else {}))
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as running:
        for line in running.stdout:
            print(line, end="", flush=True)
            once.line(line.rstrip("\n"))
    if running.returncode != 0 and not once.failures:
        once.failed += 1
        once.failures.append(("cargo test: it did not build, or did not begin", "./dev test " + " ".join(arguments)))
    if hooks:
        once.failures = [
            (f"{name}, hooks: {hooks}", f"VIADUCT_TEST_HOOKS={hooks} {again}") for name, again in once.failures
        ]
    return once


def run_once(arguments):
    """All tests; without arguments also the fuzzers for some seconds, and instruction counts."""
    once = run_cargo(arguments)
    if not arguments:
        for hooks in HOOKS:
            print(f"\nOnce more with other hooks ({hooks})", flush=True)
            more = run_cargo([f"--test={name}" for name in CORE], hooks)
            once.passed += more.passed
            once.failed += more.failed
            once.failures += more.failures
        for command in (["./dev", "fuzz", "8"], ["cargo", "bench", "--locked", "--bench", "counts"]):
            said = " ".join(command)
            print(f"\n{said}", flush=True)
            if subprocess.run(command, cwd=ROOT, check=False).returncode == 0:
                once.passed += 1
            else:
                once.failed += 1
                once.failures.append((said, said))
    print()
    if once.failures:
        print("Failed, and how to run it again:")
        for name, again in once.failures:
            print(f"  {name}\n      {again}")
        print()
    return summary(once.passed, once.failed)


Binary = collections.namedtuple("Binary", "name path directory arguments tests")


def binaries(names):
    """The workspace's test binaries, built: those of these names alone where all are files below tests/."""
    files = {file.stem for file in ROOT.glob("**/tests/*.rs") if "target" not in file.relative_to(ROOT).parts}
    only = [f"--test={name}" for name in names] if set(names) <= files else []
    command = CARGO + only + ["--no-run", "--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=False)
    if built.returncode != 0:
        sys.exit("the tests do not build")
    found = []
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message["profile"]["test"] or not message["executable"]:
            continue
        directory = pathlib.Path(message["manifest_path"]).parent
        kind, name = message["target"]["kind"][0], message["target"]["name"]
        listed = subprocess.run(
            [message["executable"], "--list", "--format", "terse"], cwd=directory, text=True, stdout=subprocess.PIPE, check=True
        )
        tests = [line.removesuffix(": test") for line in listed.stdout.splitlines() if line.endswith(": test")]
        package = re.search(r"[#/]([\w-]+)(?:@[\d.]+)?$", message["package_id"])
        # ".../path#name@1.0" or ".../name#1.0".
        package = package[1] if package else directory.name
        chosen = {"test": f"--test {name}", "bin": f"--bin {name}"}.get(kind, "--lib")
        found.append(Binary(name, message["executable"], directory, f"-p {package} {chosen}", tests))
    return found


def chosen(names):
    """Pairs of a binary and the tests of it to run; none stands for all of them."""
    everything = binaries(names)
    if not names:
        return [(binary, None) for binary in everything if binary.tests]
    picked = []
    for name in names:
        whole = [(binary, None) for binary in everything if binary.name == name and binary.tests]
        single = [(b, [test for test in b.tests if name in test]) for b in everything]
        single = [(binary, tests) for binary, tests in single if tests]
        if not whole and not single:
            known = ", ".join(sorted({binary.name for binary in everything if binary.tests}))
            sys.exit(f"{name} is neither a test binary nor part of a test's name; the binaries: {known}")
        picked += whole or single
    return picked


class Busy:
    """A process for each processor that does nothing but keep it busy."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.processes = []

    def __enter__(self):
        if self.wanted:
            # They end with this process, however it ends: their standard input does.
            program = "import select, sys\nwhile not select.select([sys.stdin], [], [], 0)[0]: sum(range(100000))"
            for _ in range(os.cpu_count() or 1):
                self.processes.append(subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE))

    def __exit__(self, *_):
        for process in self.processes:
            process.stdin.close()
            process.wait()


def run_binary(binary, tests):
    """Runs it once: what it said, which tests passed and failed, whether it ended well."""
    command = [binary.path] + (["--exact", *tests] if tests else [])
    process = subprocess.Popen(
        command,
        cwd=binary.directory,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        said += f"\nended: it took longer than {PATIENCE} seconds\n"
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    results = {found[1]: found[2] == "ok" for line in said.splitlines() if (found := TEST.match(line))}
    return said, results, process.returncode == 0


def run_repeat(arguments):
    """Runs what is named again and again, and counts."""
    busy = "--busy" in arguments
    arguments = [argument for argument in arguments if argument != "--busy"]
    if not arguments or not re.fullmatch(r"[1-9]\d{0,4}", arguments[0]):
        sys.exit("usage: ./dev test --repeat N [--busy] [NAME...]")
    rounds, picked = int(arguments[0]), chosen(arguments[1:])
    passed, failed = collections.Counter(), collections.Counter()
    again = {}
    KEPT.mkdir(parents=True, exist_ok=True)
    try:
        with Busy(busy):
            for number in range(1, rounds + 1):
                for binary, tests in picked:
                    started = time.monotonic()
                    said, results, well = run_binary(binary, tests)
                    for test, good in results.items():
                        name = f"{binary.name}::{test}"
                        (passed if good else failed)[name] += 1
                        again[name] = f"./dev test {binary.arguments} -- --exact {test}"
                    bad = [test for test, good in results.items() if not good]
                    if not well and not bad:
                        name = f"{binary.name} (ended without a result)"
                        failed[name] += 1
                        again[name] = f"./dev test {binary.arguments}"
                        bad = [name]
                    took = time.monotonic() - started
                    state = "ok" if well else "FAILED: " + ", ".join(bad)
                    print(f"round {number} of {rounds}: {binary.name}, {took:.0f} s: {state}", flush=True)
                    if not well:
                        kept = KEPT / f"{binary.name}-{number}.log"
                        kept.write_text(said)
                        print(f"    its output: {kept.relative_to(ROOT)}", flush=True)
    except KeyboardInterrupt:
        print("\ninterrupted", flush=True)
    print(f"\n{'passed':>7} {'failed':>7}  test")
    for name in sorted(passed.keys() | failed.keys(), key=lambda name: (-failed[name], name)):
        print(f"{passed[name]:>7} {failed[name]:>7}  {name}")
    print()
    for name in sorted(failed):
        print(f"{name}\n      {again[name]}")
    return summary(passed.total(), failed.total())


def main():
    """The command line."""
    what, *arguments = sys.argv[1:] or ["help"]
    if what == "once":
        return run_once(arguments)
    if what == "repeat":
        return run_repeat(arguments)
    print(__doc__.strip())
    return 2


if __name__ == "__main__":
    sys.exit(main())
