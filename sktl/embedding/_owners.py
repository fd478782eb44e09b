"""Names of processes that other processes can check."""

import functools
import os
import platform
from pathlib import Path


def this_process():
    """A name for this process that no other process has, now or later."""
    pid = os.getpid()
    return f"{_machine()}|{pid}|{_start_time(pid)}"


def is_alive(owner):
    """Whether the process of that name may still run; one on another machine may, one of no such name does not."""
    try:
        machine, pid, started = owner.rsplit("|", 2)
        pid = int(pid)
    except (AttributeError, TypeError, ValueError):
        return False
    if pid < 1:  # which would be no process, but a group of them
        return False
    if machine != _machine():
        return True
    if started:
        return _start_time(pid) == started
    if os.name == "nt":
        return True  # os.kill would not ask there, but act
    try:
        os.kill(pid, 0)
    except (OverflowError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


@functools.cache
def _machine():
    """This boot of this machine, and the container that counts the process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _start_time(pid):
    """When a process started, as Linux counts it; empty where that is not known or it runs no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
