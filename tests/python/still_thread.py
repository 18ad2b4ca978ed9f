"""Runs the program of its arguments, and stops one of its threads. Usage:
still_thread.py run PROGRAM ARGUMENT...     runs the program, and lets any process of the same user stop its threads
still_thread.py stop PID NAME               stops the first thread with this name until standard input ends"""

import ctypes
import os
import sys

# ptrace(2) and prctl(2), from <sys/ptrace.h>, <linux/prctl.h>.
SEIZE, INTERRUPT = 0x4206, 0x4207
SET_PTRACER, ANY = 0x59616D61, ctypes.c_ulong(-1)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def stop(process, name):
    folder = f"/proc/{process}/task"
    threads = sorted(int(thread) for thread in os.listdir(folder))
    named = [thread for thread in threads if open(f"{folder}/{thread}/comm").read().strip() == name]
    ptrace(SEIZE, named[0])
    ptrace(INTERRUPT, named[0])
    os.waitpid(named[0], 0x40000000)  # __WALL: it is a thread of another process.
    print("stopped", flush=True)
    # The thread goes on when its tracer ends.
    sys.stdin.read()


if sys.argv[1] == "run":
    # Refused where no security module asks for it.
    libc.prctl(SET_PTRACER, ANY, 0, 0, 0)
    os.execv(sys.argv[2], sys.argv[2:])
stop(int(sys.argv[2]), sys.argv[3])
