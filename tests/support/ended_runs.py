"""Training runs that end before a step."""

import pytest

from gms_fast.training import loop


def interrupt_at(patch, step):
    """End every run before this step as Ctrl-C does."""
    taken = loop._Step.__call__

    def called(self, state, signals):
        if state.step == step:
            raise KeyboardInterrupt
        return taken(self, state, signals)

    patch.setattr(loop._Step, "__call__", called)


def train_until(step, monkeypatch, train, *args, **options):
    """Run `train` until it is interrupted before the given step."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(*args, **options)
