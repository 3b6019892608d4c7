"""Ctrl-C and SIGTERM: delayed until files are complete, and reported in one line.

Only the standard library is imported here, so a command can call `guard` before torch is loaded.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception, which ends a command as Ctrl-C does."""


def number(error: KeyboardInterrupt) -> signal.Signals:
    """Return the signal that raised the exception."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def status(number: int) -> int:
    """Return the exit status for a signal, as shells report it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def speaks() -> bool:
    """Tell whether this process reports for all ranks of torchrun; without torchrun it does."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


class PutOff:
    """Signals that have arrived and wait; a call raises them, after an optional function."""

    def __init__(self) -> None:
        self._come: list[int] = []
        self.before: dict[int, Handler] = {}

    @property
    def come(self) -> bool:
        """Tell whether a signal waits."""
        return bool(self._come)

    def __call__(self, first: Callable[[], None] | None = None) -> None:
        if self._come:
            if first is not None:
                first()
            number = self._come[0]
            self._come.clear()
            self.before[number](number, None)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Keep a signal; a second one acts at once."""
        self._come.append(number)
        if len(self._come) > 1:
            self.before[number](number, frame)


@contextmanager
def put_off() -> Iterator[PutOff]:
    """Delay signals in the block until the next call of the yielded object, or the block's end.

        with put_off() as check:
            for ...:
                a step that must not end halfway
                check(save)  # may call save and raise KeyboardInterrupt; without an argument it raises alone

    A second signal acts at once. Only the main thread receives signals, so other threads delay nothing.
    """
    check = PutOff()
    try:
        wanted = [number for number in SIGNALS if callable(signal.getsignal(number))]
        with _handled(wanted, check.note) as check.before:
            yield check
    finally:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            check()


@contextmanager
def raised() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the block, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        if _forgetful(frame):
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # send it again in a moment
            return
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with _handled(_heard(), stop):
        yield


def _forgetful(frame: FrameType | None) -> bool:
    """Tell whether Python would drop an exception now, because a `__del__` runs."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@contextmanager
def _handled(numbers: Iterable[int], handler: Handler) -> Iterator[dict[int, Handler]]:
    """Set a handler for signals in the block; yields the functions that handled them before.

    In other threads nothing changes.
    """
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if here}
    try:
        yield {number: old for number, old in before.items() if callable(old)}
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _heard() -> list[signal.Signals]:
    """Return the signals that the parent process does not ignore.

    A shell ignores Ctrl-C for commands in the background, for instance.
    """
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def ignore() -> None:
    """Ignore all signals from here on, because the command is ending."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def guard() -> None:
    """End the process in one line for signals before the command begins or after it ended."""

    def end(number: int, frame: FrameType | None) -> None:
        if speaks():
            os.write(2, f"gms-fast: {WORDS[signal.Signals(number)]}\n".encode())
        os._exit(status(number))

    for number in _heard():
        signal.signal(number, end)
    atexit.register(ignore)  # Python removes its handlers before the process ends


def is_command() -> bool:
    """Tell whether this process is the command `gms-fast` or `python -m gms_fast`.

    Programs that import the package, and worker processes, are not.
    """
    if multiprocessing.parent_process() is not None:
        return False
    if sys.argv[:1] == ["-m"]:
        return "gms_fast" in sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]
    return os.path.splitext(os.path.basename(sys.argv[0] or ""))[0] in ("gms-fast", "gms-fast-script")


@contextmanager
def blocked(numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Start processes in the block that never receive these signals.

    Another thread of this process may still receive them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
