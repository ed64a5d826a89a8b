"""stick.py PID NAME: stops one thread of a process until standard input ends.

A debugger's means (ptrace(2), PTRACE_SEIZE): the others go on.
"""
import ctypes
import os
import sys

SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, tid):
    if libc.ptrace(request, tid, None, None) != 0:
        sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")


pid, name = sys.argv[1], sys.argv[2]
for task in os.listdir(f"/proc/{pid}/task"):
    with open(f"/proc/{pid}/task/{task}/comm") as comm:
        if comm.read().strip() == name:
            tid = int(task)
            break
else:
    sys.exit(f"no thread {name}")
ptrace(SEIZE, tid)
ptrace(INTERRUPT, tid)
os.waitpid(tid, WALL)
print("stuck", flush=True)
sys.stdin.read()
ptrace(DETACH, tid)
