"""Signals: delayed until files are complete, and one line at any moment of a command."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from gms_fast import interrupts
from gms_fast.cli import main, sample


@pytest.fixture(autouse=True)
def _heard():
    """Reset signals to a terminal's defaults; a shell ignores some for background processes."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0)  # Python handles the signal between two statements


def walk(done, signals=(), error=None):
    """Take three steps; signals arrive in some of them, and the second may fail."""
    with interrupts.put_off() as check:
        for step in range(3):
            for number in [number for at, number in signals if at == step]:
                send(number)
            if step == 1 and error:
                raise error
            done.append(step)
            check()


def test_a_signal_waits_for_the_end_of_a_step():
    done = []
    with pytest.raises(KeyboardInterrupt):
        walk(done, [(1, signal.SIGINT)])
    assert done == [0, 1]


def test_the_second_signal_does_not_wait():
    done = []
    with pytest.raises(KeyboardInterrupt):
        walk(done, [(1, signal.SIGINT), (1, signal.SIGINT)])
    assert done == [0]


def test_a_signal_is_not_lost_by_an_error_in_its_step():
    with pytest.raises(KeyboardInterrupt):
        walk([], [(1, signal.SIGINT)], ValueError("of a step that the signal disturbed"))


def test_a_signal_is_not_lost_at_the_end():
    with pytest.raises(KeyboardInterrupt), interrupts.put_off():
        send(signal.SIGINT)


def test_handlers_are_those_of_before(monkeypatch):
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.raised():
        assert signal.getsignal(signal.SIGTERM) not in before
        with interrupts.put_off():
            pass
        with pytest.raises(interrupts.Terminated):
            send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_a_signal_is_not_lost_in_the_end_of_an_object():
    class Ending:
        def __del__(self):
            self.close()

        def close(self):
            send(signal.SIGTERM)

    def walk():
        Ending()  # the object is deleted at once
        time.sleep(5)

    with pytest.raises(interrupts.Terminated), interrupts.raised():
        walk()


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [({}, True), ({"RANK": "1"}, True), *[({"RANK": str(k), "WORLD_SIZE": "2"}, k == 0) for k in (0, 1)]],
)
def test_first_rank_of_torchrun_speaks_for_all(monkeypatch, environment, speaks):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert interrupts.speaks() == speaks


def test_other_threads_put_nothing_off():
    seen = []

    def work():
        with interrupts.put_off() as check, interrupts.raised():
            check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_command_ends_in_one_line_with_the_status_of_its_signal(number, word, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "_draw", lambda *_: send(number))
    assert main(["sample", "--model", "digits", "--out", str(tmp_path / "x.png")]) == 128 + number
    assert capsys.readouterr().err == f"gms-fast: {word}; none of 64 images was finished\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("model returned NaN at step 2"), "error: model returned NaN at step 2; 3 of 64 images"),
        (torch.OutOfMemoryError("CUDA"), "error: --batch-size 64 is more than cpu has memory for; 3 of 64 images"),
        (MemoryError(), "error: MemoryError; 3 of 64 images"),
    ],
)
def test_what_is_drawn_is_kept_however_the_drawing_ends(error, message, capsys, monkeypatch, tmp_path):
    def draw(*args):
        args[-1].append(torch.zeros(3, 1, 8, 8))
        raise error

    monkeypatch.setattr(sample, "_draw", draw)
    assert main(["sample", "--model", "digits", "--out", str(tmp_path / "x.png")]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("start", ["module", "script"])
def test_a_signal_at_any_moment_of_the_start_ends_in_one_line(start, tmp_path):
    """The start begins with the package's first line; before it Python prints its own message."""
    program = [sys.executable, "-m", "gms_fast"]
    if start == "script":
        (tmp_path / "gms-fast").write_text("import sys; from gms_fast.cli import main; sys.exit(main())")
        program = [sys.executable, str(tmp_path / "gms-fast")]
    seen = set()
    for delay, number in ((0, signal.SIGTERM), (0.2, signal.SIGINT), (0.7, signal.SIGTERM), (1.4, signal.SIGINT)):
        process = subprocess.Popen([*program, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        guarded(process)
        time.sleep(delay)
        process.send_signal(number)
        said = process.communicate()[1]
        seen.add(process.returncode)
        assert process.returncode in (0, 128 + number), said
        assert process.returncode == 0 or re.fullmatch(r"gms-fast: (interrupted|terminated)\n", said), said
    assert {130, 143} <= seen


def guarded(process):
    """Wait until a process handles SIGINT itself instead of by Python's default handler.

    SIGTERM has its handler then too.
    """
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status") as status:
            caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("argv", "original", "wanted"),
    [
        (["/env/bin/gms-fast", "sample"], ["python", "/env/bin/gms-fast", "sample"], True),
        (["gms-fast.exe"], ["gms-fast.exe"], True),
        (["-m", "info"], ["python", "-u", "-m", "gms_fast", "info"], True),
        (["-m", "gms_fast"], ["python", "-m", "pytest", "gms_fast"], False),
        (["/home/me/gms-fast-demo.py"], ["python", "/home/me/gms-fast-demo.py"], False),
        (["-c"], ["python", "-c", "import gms_fast"], False),
        ([""], ["python"], False),
    ],
)
def test_the_command_is_told_from_programs_that_import_the_package(monkeypatch, argv, original, wanted):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert interrupts.is_command() == wanted
    monkeypatch.setattr(interrupts.multiprocessing, "parent_process", lambda: "gms-fast evaluate")
    assert not interrupts.is_command()


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.raised(), interrupts.put_off():
            send(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_blocked_signals_never_reach_processes_that_are_started_meanwhile():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')"
    with interrupts.blocked():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "alive\n"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM


def test_images_that_are_drawn_are_written_before_a_signal_is_heard(capsys, monkeypatch, tmp_path):
    savez = np.savez

    def slow(*args, **arrays):
        send(signal.SIGINT)
        savez(*args, **arrays)

    monkeypatch.setattr(sample, "_draw", lambda *args: args[-1].append(torch.zeros(64, 1, 8, 8)))
    monkeypatch.setattr(np, "savez", slow)
    out = tmp_path / "x.npz"
    assert main(["sample", "--model", "digits", "--out", str(out)]) == 130
    assert capsys.readouterr().err == f"gms-fast: interrupted; all 64 images are in {out}\n"
    assert len(np.load(out)["images"]) == 64


def test_a_part_does_not_replace_a_whole(capsys, monkeypatch, tmp_path):
    out = tmp_path / "x.png"
    command = ["sample", "--model", "digits", "--n", "4", "--steps", "1", "--batch-size", "2", "--out", str(out)]
    assert main(command) == 0
    whole, draw = out.read_bytes(), sample._draw

    def half(*args):
        args[-1].append(torch.zeros(2, 1, 8, 8))
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_draw", half)
    (tmp_path / "x.part.png").write_text("mine")
    assert main([*command, "--force"]) == 130
    assert f"; 2 of 4 images, the first ones of --seed 0, are in {tmp_path}/x.part-2.png: " in capsys.readouterr().err
    assert out.read_bytes() == whole
    monkeypatch.setattr(sample, "_draw", draw)
    assert main([*command, "--force"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.part-2.png", "x.part.png", "x.png"]
    assert (tmp_path / "x.part.png").read_text() == "mine"


def test_a_program_that_imports_the_package_keeps_its_signals():
    code = "import gms_fast, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
