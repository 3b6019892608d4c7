"""Writer thread: one write at a time, in order, and no lost error."""

import threading
import time

import pytest

from gms_fast.generation.writer import Writer


def test_things_are_written_in_order_one_at_a_time():
    written, at_once = [], []

    def write(i, more):
        at_once.append(i)
        time.sleep(0.001)
        written.append((i, more))
        assert at_once.pop() == i

    with Writer(write) as writer:
        for i in range(20):
            writer(i, "x")
    assert written == [(i, "x") for i in range(20)]
    assert at_once == []


def test_writer_writes_while_its_caller_goes_on():
    go, begun = threading.Event(), threading.Event()

    def write():
        begun.set()
        assert go.wait(30)

    with Writer(write) as writer:
        writer()
        assert begun.wait(30)
        go.set()


def full(*_):
    raise OSError(28, "No space left on device")


def written(write, *calls, end=None):
    """Write once per call; the block may end with an error."""
    with Writer(write) as writer:
        for call in calls:
            writer(call)
        if end is not None:
            raise end


def test_error_of_a_write_comes_with_the_next():
    with Writer(full) as writer:
        writer(1)
        with pytest.raises(OSError, match="No space"):
            writer(2)


def test_error_of_the_last_write_comes_at_the_end_and_once():
    with pytest.raises(OSError, match="No space"):
        written(full, 1)
    with Writer(full) as writer:
        writer(1)
        with pytest.raises(OSError, match="No space"):
            writer.wait()
        writer.wait()


def test_error_of_the_block_is_the_one_that_is_told_and_the_write_is_finished():
    finished = []

    def slow(i):
        time.sleep(0.05)
        finished.append(i)

    with pytest.raises(KeyboardInterrupt):
        written(slow, 1, end=KeyboardInterrupt())
    assert finished == [1]
    with pytest.raises(KeyboardInterrupt):
        written(full, 1, end=KeyboardInterrupt())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]
