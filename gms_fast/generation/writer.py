"""Thread that writes one result while the next is drawn."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Writer:
    """Calls of `write` in a thread, one at a time; `with` waits for the last one."""

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._last: Future[None] | None = None

    def __call__(self, *arguments: Any) -> None:
        """Start a write after the previous one has ended. Raises that one's error."""
        self.wait()
        self._last = self._pool.submit(self._write, *arguments)

    def wait(self) -> None:
        """Wait for the last write. Raises its error."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()
