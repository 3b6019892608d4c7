"""Simulated CUDA graphs on the CPU: operators are recorded and run again at a replay.

They have the limits of CUDA: during a capture the host reads nothing, and a replay writes every tensor made in the
capture at its own place.
"""

import warnings
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gms_fast import clipping, finite, graphing, run

READ = torch.ops.aten._local_scalar_dense.default


class Graph:
    """Replacement for `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for op, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(op(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recording(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is READ:
            raise RuntimeError("operation not permitted when stream is capturing")
        results = op(*args, **(kwargs or {}))
        self.graph.calls.append((op, args, kwargs or {}, results))
        return results


class Waiting(TorchDispatchMode):
    """Mode that warns of operators that make the host wait for a GPU."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is READ:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=4)
        return op(*args, **(kwargs or {}))


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


def play(monkeypatch):
    """Make `graphed` capture loops on the CPU."""
    modes = []

    @contextmanager
    def graph(graph, pool=None, stream=None, capture_error_mode="global"):
        with Recording(graph) as mode:
            modes.append(mode)
            try:
                yield
            except Exception:
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 - as torch
            finally:
                modes.remove(mode)

    def set_sync_debug_mode(mode):
        if mode == "warn":
            modes.append(Waiting())
            modes[-1].__enter__()
        elif modes:
            modes.pop().__exit__(None, None, None)

    monkeypatch.setattr(graphing, "_has_graphs", lambda device: True)
    for module in (clipping, finite, run):  # as on a GPU, whose values the host does not read in the loop
        monkeypatch.setattr(module, "recorded", lambda tensor: bool(modes))
    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "device": lambda device: nullcontext(),
        "get_sync_debug_mode": lambda: 0,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: any(isinstance(mode, Recording) for mode in modes),
        "set_sync_debug_mode": set_sync_debug_mode,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
