"""A process that is killed after a given number of its system calls (Linux)."""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable

_TRACEME, _SYSCALL, _SETOPTIONS = 0, 24, 0x4200  # requests of ptrace
_SYSGOOD, _EXITKILL = 1, 1 << 20
_AT_CALL = signal.SIGTRAP | 0x80


def available() -> bool:
    """Return True if parents may trace their processes on this system."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return killed(lambda: None, 0)
    except OSError:
        return False


def killed(work: Callable[[], object], after: int) -> bool:
    """Do `work` in a forked child that is killed after `after` system calls.

    Returns False if the work ended before. Raises RuntimeError if it ended with an error, whose traceback is on stderr.
    Raises OSError if tracing is not allowed.
    """
    child = os.fork()
    if child == 0:
        _work(work)
    os.waitpid(child, 0)  # the child waits to be traced, or has failed to
    _ptrace(_SETOPTIONS, child, _SYSGOOD | _EXITKILL)
    stops, deliver = 0, 0
    while True:
        if stops == 2 * after + 1:  # each call stops twice: at its start and its end
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        _ptrace(_SYSCALL, child, deliver)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"the work ended with status {os.waitstatus_to_exitcode(status)}")
            return False
        at_call = os.WSTOPSIG(status) == _AT_CALL
        stops, deliver = stops + at_call, 0 if at_call else os.WSTOPSIG(status)


def _work(work: Callable[[], object]) -> None:
    """Wait to be traced, do the work, and exit without Python's cleanup."""
    status = 1
    try:
        _ptrace(_TRACEME, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _ptrace(request: int, process: int, data: int) -> None:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    if ptrace(request, process, None, data) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
