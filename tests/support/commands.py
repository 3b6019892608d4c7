"""Commands run in this process, and the line that a refused one prints."""

from gms_fast.cli import main
from gms_fast.models.unet import MomentUNet


def run(*argv):
    return main([str(a) for a in argv])


def refusal(capsys, *argv):
    """The one line that a refused command prints on stderr."""
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gms-fast: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def interrupting(monkeypatch, calls):
    """A Ctrl-C at the network's call of that number, 0 the first."""
    left, forward = iter(range(calls)), MomentUNet.forward

    def called(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(MomentUNet, "forward", called)
