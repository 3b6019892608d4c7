"""Ctrl-C and SIGTERM: put off to moments when everything is whole, and reported in one line.

Nothing but the standard library is imported here, so that a command can call `guard` before torch is loaded.
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
    """SIGTERM, which ends a command as Ctrl-C does."""


def number(error: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised it."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def status(number: int) -> int:
    """Exit status of a command that a signal ended, as shells report it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def speaks() -> bool:
    """Tell the process that speaks for all ranks of torchrun; without torchrun any does."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


class PutOff:
    """Signals that have come and wait: call it, perhaps with what is to be done before, and they raise."""

    def __init__(self) -> None:
        self._come: list[int] = []
        self.before: dict[int, Handler] = {}

    @property
    def come(self) -> bool:
        """Tell whether one waits."""
        return bool(self._come)

    def __call__(self, first: Callable[[], None] | None = None) -> None:
        if self._come:
            if first is not None:
                first()
            number = self._come[0]
            self._come.clear()
            self.before[number](number, None)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Keep a signal; the second one acts."""
        self._come.append(number)
        if len(self._come) > 1:
            self.before[number](number, frame)


@contextmanager
def put_off() -> Iterator[PutOff]:
    """In the block, signals that would raise wait for the next call of what it is given, and for its end.

        with put_off() as check:
            for ...:
                a step that must not end halfway
                check(save)  # may call save and raise KeyboardInterrupt; without an argument it raises alone

    The second signal acts at once. Outside the main thread, which alone receives signals, nothing is put off.
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
    """In the block, SIGTERM raises `Terminated` as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        if _forgetful(frame):
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # once more, in a moment
            return
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with _handled(_heard(), stop):
        yield


def _forgetful(frame: FrameType | None) -> bool:
    """Tell a moment at which Python would drop an exception: inside the end of an object."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@contextmanager
def _handled(numbers: Iterable[int], handler: Handler) -> Iterator[dict[int, Handler]]:
    """In the block, signals have this handler; it is given the functions they had. In other threads nothing changes."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if here}
    try:
        yield {number: old for number, old in before.items() if callable(old)}
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _heard() -> list[signal.Signals]:
    """Signals that whoever started this process has not had ignored, as a shell does Ctrl-C for what it puts aside."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def ignore() -> None:
    """Have signals wait for nothing: the command is ending already."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def guard() -> None:
    """End the process in one line for a signal that comes before the command begins or after it has ended."""

    def end(number: int, frame: FrameType | None) -> None:
        if speaks():
            os.write(2, f"gms-fast: {WORDS[signal.Signals(number)]}\n".encode())
        os._exit(status(number))

    for number in _heard():
        signal.signal(number, end)
    atexit.register(ignore)  # Python takes its handlers away before the process ends


def is_command() -> bool:
    """Tell the command `gms-fast`, or `python -m gms_fast`, from a program that imports this package, or a worker."""
    if multiprocessing.parent_process() is not None:
        return False
    if sys.argv[:1] == ["-m"]:
        return "gms_fast" in sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]
    return os.path.splitext(os.path.basename(sys.argv[0] or ""))[0] in ("gms-fast", "gms-fast-script")


@contextmanager
def blocked(numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """A block in which processes are started that never get these signals; another thread may still hear them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
