"""The sampling loop captured once, in a CUDA graph or by torch.compile, and replayed for other seeds."""

import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gms_fast import ops
from gms_fast.assumptions import UNSAID
from gms_fast.ops.types import Draws
from gms_fast.plan import integer
from gms_fast.run import Run, check_samples
from gms_fast.sampling import loop
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.types import NoiseMoments

_SCALARS = (bool, int, float, str, type(None))


def graphed(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    steps: int = 10,
    *,
    compile: bool = False,
    solver: str | Solver = "gms",
    n: int = 16,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    timesteps: Sequence[float] | None = None,
    prediction: str | None = None,
    seed: ops.Seed = 0,
    sample_offset: int = 0,
    step_offset: int = 0,
    x_T: Tensor | None = None,
    clip: tuple[float, float] | str | None = UNSAID,
    denoise: bool | None = None,
    condition: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> "Graphed":
    """Capture the whole loop of `gms_fast.sample` once, in a CUDA graph, and return the callable that replays it.

        draw = gms_fast.graphed(model, 10, n=4)
        x = draw(7)  # the bits of gms_fast.sample(model, 10, n=4, seed=7)

    compile  torch.compile(.., fullgraph=True) of the loop instead, on any device. How long that took is printed to
             stderr. Samples agree to rounding: the compiler fuses the network's operations
    seed, x_T, condition  what a call draws with unless it gives its own; they fix shapes and dtypes. Of a condition
             tensors may change from call to call, on the state's device; all else is part of the graph

    All other arguments are those of `sample`, fixed by the capture. What the host does at every step cannot be in a
    graph: noise=, callback= and progress= are no arguments here.

    Capturing runs the loop twice before, in which kernels are compiled and caches filled, and compares the samples of
    two replays with those, bit for bit. Where there is no CUDA device, where the host reads from the device, where
    capturing fails, or where samples differ, every call runs the loop step by step: `why` says the reason, a
    UserWarning too. Weights are read at every replay where they were at the capture: they may be written to, but not
    moved. Autocast counts as it was at the capture.

    Raises what `sample` raises, errors of the model as they are.
    """
    prepare = partial(
        Run.prepare,
        model,
        solver=solver,
        steps=steps,
        timesteps=timesteps,
        schedule=schedule,
        prediction=prediction,
        clip=clip,
        denoise=denoise,
        batch_size=batch_size,
        callback=None,
    )
    draws = Draws(seed=ops.as_seed(seed), sample_offset=integer("sample_offset", sample_offset))
    like = prepare(condition=condition).initial(draws, n, shape, x_T, device, dtype)
    walk = partial(
        loop,
        n=n,
        shape=shape,
        sample_offset=sample_offset,
        step_offset=step_offset,
        noise=None,
        device=like.device,
        dtype=dtype,
        progress=False,
    )
    given = Inputs(seed, condition, x_T)
    return Graphed(Loop(prepare, walk), given, like, draws.sample_offset, compile=compile)


class Inputs(NamedTuple):
    """The inputs of the loop that may differ from call to call."""

    seed: Any  # ops.Seed, or the tensor that is held
    condition: dict[str, Any] | None
    start: Tensor | None  # x_T

    def held(self, device: torch.device) -> "Inputs":
        """Copies on the device, which a graph reads."""
        seed = torch.as_tensor(ops.as_seed(self.seed))
        return Inputs(*(_copied(value, device) for value in (seed, self.condition, self.start)))


class Loop(NamedTuple):
    """The loop of `sample` with all that stays the same: to be prepared, and to be walked."""

    prepare: Callable[..., Run]
    walk: Callable[..., Tensor]

    def run(self, inputs: Inputs) -> Run:
        return self.prepare(condition=inputs.condition)

    def through(self, run: Run, inputs: Inputs) -> Tensor:
        return self.walk(run, seed=inputs.seed, x_T=inputs.start)

    def draw(self, inputs: Inputs) -> Tensor:
        """The samples, step by step."""
        run = self.run(inputs)
        return run.finished(self.through(run, inputs))


class NotCapturedError(Exception):
    """The reason why a loop cannot be had as a graph."""


Replay = Callable[[], Tensor]  # draws with the inputs that are held then


class Graphed:
    """A loop that was captured for one seed, or for one a sample; the other is captured at its first call.

    why  the reason why the loop runs step by step; None where it is a graph
    """

    def __init__(self, loop: Loop, given: Inputs, like: Tensor, sample_offset: int, *, compile: bool) -> None:
        self.why: str | None = None
        self._loop, self._given = loop, given
        self._samples, self._device, self._offset = len(like), like.device, sample_offset
        self._capture = _compiled if compile else _Graphs(like.device)
        self._replays: dict[int, tuple[Inputs, Replay]] = {}  # by the dimensions of the seed
        self._lock = threading.Lock()  # they share what they read and write
        self._add(given)

    @torch.no_grad()
    def __call__(
        self, seed: ops.Seed | None = None, *, condition: dict[str, Any] | None = None, x_T: Tensor | None = None
    ) -> Tensor:
        """The samples (n, *shape) of `gms_fast.sample` for these arguments, in memory of their own.

        seed       64-bit integer, or one per sample
        condition  the keywords that `graphed` was given, with tensors of the same shapes and dtypes
        x_T        (n, *shape) to start from, if `graphed` was given one

        What is None is as `graphed` was given it. Raises ValueError or TypeError naming the argument, and ValueError
        naming the step where the model returns NaN or infinity.
        """
        own = self._given
        given = Inputs(
            own.seed if seed is None else seed,
            own.condition if condition is None else condition,
            own.start if x_T is None else x_T,
        )
        bits = ops.as_seed(given.seed)
        check_samples(Draws(seed=bits, sample_offset=self._offset), self._samples)
        pairs(own, given)
        kind = bits.ndim if isinstance(bits, Tensor) else 0
        with self._lock:
            if self.why is None and kind not in self._replays:
                self._add(given)
            if self.why is None:
                held, replay = self._replays[kind]
                held.seed.fill_(bits) if isinstance(bits, int) else held.seed.copy_(bits)
                for kept, new in pairs(held, given):
                    kept.copy_(new)
                return replay()
        return self._loop.draw(given)

    def _add(self, given: Inputs) -> None:
        """Capture the loop for seeds of this kind, or note why it cannot be."""
        try:
            with torch.inference_mode(False), torch.no_grad():  # what is held is written to, in any mode
                held = given.held(self._device)
                self._replays[held.seed.ndim] = held, self._capture(self._loop, held)
        except NotCapturedError as reason:
            self.why = str(reason)
            self._replays.clear()
            warnings.warn(f"gms_fast.graphed runs the loop step by step: {self.why}", stacklevel=4)


# --- torch.compile ---


def _compiled(loop: Loop, held: Inputs) -> Replay:
    """The loop by torch.compile. Raises NotCapturedError."""
    draw = torch.compile(_by_itself(lambda inputs: loop.draw(inputs)), fullgraph=True)
    start = time.perf_counter()
    try:
        draw(held)
    except Exception as error:
        loop.draw(held)  # an error of the model itself is raised here
        raise NotCapturedError(f"torch.compile failed at {_place(error)}: {_line(error)}") from None
    print(f"gms_fast.graphed: compiled in {time.perf_counter() - start:.1f} s", file=sys.stderr)

    def replay() -> Tensor:
        x = draw(held)
        return x if bool(x.isfinite().all()) else loop.draw(held)  # which names the step

    return replay


def _by_itself(function: Any) -> Callable[[Inputs], Tensor]:
    """The function with code of its own: torch.compile makes eight graphs of one piece of code, and then no more."""
    return FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)


# --- CUDA graphs ---


class _Graphs:
    """CUDA graphs on a device. They share their memory, and are replayed one at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @cached_property
    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def __call__(self, loop: Loop, held: Inputs) -> Replay:
        """The loop as a graph, checked. Raises NotCapturedError, and errors of the model as they are."""
        if not _has_graphs(self.device):
            raise NotCapturedError(f"CUDA graphs need a CUDA device: got {self.device}")
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):
                    return self._checked(loop, held)
            finally:
                current.wait_stream(self.stream)

    def _checked(self, loop: Loop, held: Inputs) -> Replay:
        """The loop as a graph that gives the loop's own samples, for two seeds."""
        run = loop.run(held)  # one for all: its first calls find out what the network takes
        first = run.finished(loop.through(run, held))
        held.seed.add_(1)
        with _waits() as places:
            second = loop.through(run, held)
        if places:
            raise NotCapturedError(f"the host waits for the GPU in the loop, first at {places[0]}")
        graph, x = self._captured(lambda: run.finished(loop.through(run, held)))
        for change, wanted in ((0, second), (-1, first)):
            held.seed.add_(change)
            graph.replay()
            if not torch.equal(x, wanted):
                raise NotCapturedError(
                    f"a replay gives other samples than the loop, by up to {float((x - wanted).abs().max()):.3g}: "
                    "does the model draw random numbers, or compute with numbers of the host?"
                )

        def replay() -> Tensor:
            graph.replay()
            drawn = x.clone()
            run.finite.report()
            return drawn

        return replay

    def _captured(self, draw: Replay) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph and the tensor that its replays write."""
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # a graph must not read casts that end with autocast, nor others those of a graph
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                x = draw()
        except Exception as error:
            torch.cuda.synchronize()  # raises where nothing on this device works any more
            cause = _cause(error)
            raise NotCapturedError(f"capturing failed at {_place(cause)}: {_line(cause)}") from None
        finally:
            torch.clear_autocast_cache()
        return graph, x


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Places where the host waits for the GPU, known at the end: found out before a capture, which that would break."""
    places: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
    places += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


def _cause(error: BaseException) -> BaseException:
    """The error that came first: the end of a capture raises another one."""
    return error if error.__context__ is None else _cause(error.__context__)


def _place(error: BaseException) -> str:
    """The line that raised the error; of one by torch.compile, that in the code which it compiles."""
    frame = (getattr(error, "real_stack", None) or traceback.extract_tb(error.__traceback__))[-1]
    return f"{frame.filename}:{frame.lineno}"


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


# --- what is held, and what is given in its place ---


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part, device) for key, part in value.items()}
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value


def pairs(held: Inputs, given: Inputs) -> list[tuple[Tensor, Tensor]]:
    """Each tensor held of a condition and x_T, and the one given in its place.

    Raises ValueError naming what cannot take that place.
    """
    return _pairs("condition", held.condition, given.condition) + _pairs("x_T", held.start, given.start)


def _pairs(name: str, held: Any, given: Any) -> list[tuple[Tensor, Tensor]]:
    if isinstance(held, dict) and isinstance(given, dict) and held.keys() == given.keys():
        return [pair for key in held for pair in _pairs(f"{name}[{key!r}]", held[key], given[key])]
    if isinstance(held, Tensor) and isinstance(given, Tensor) and _kind(held) == _kind(given):
        return [(held, given)]
    if given is held or (isinstance(given, _SCALARS) and type(given) is type(held) and given == held):
        return []
    raise ValueError(f"{name} must be as graphed was given it, {_kind(held)}: got {_kind(given)}")


def _kind(value: Any) -> str:
    """The part of a value that a graph cannot do without."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"the keywords {', '.join(map(str, value))}"
    return repr(value) if isinstance(value, _SCALARS) else f"that {type(value).__name__}"
