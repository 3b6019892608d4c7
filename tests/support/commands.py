"""Commands run in this process, and the message of a refused one."""

from gms_fast.cli import main
from gms_fast.models.unet import MomentUNet


def run(*argv):
    return main([str(a) for a in argv])


def refusal(capsys, *argv):
    """Return the one line that a refused command prints on stderr."""
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gms-fast: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def interrupting(monkeypatch, calls):
    """Raise Ctrl-C at the network call of that number, counted from 0."""
    left, forward = iter(range(calls)), MomentUNet.forward

    def called(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(MomentUNet, "forward", called)
