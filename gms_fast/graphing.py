"""Capture the sampling loop once, with a CUDA graph or torch.compile, and replay it."""

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
    """Capture the loop of `sample` once in a CUDA graph and return a callable that replays it.

    A replay avoids the CPU work between kernels. The seed, `x_T` and the tensors in `condition` may change from call
    to call, but their shapes and dtypes may not. Everything else is fixed at capture.

    The loop runs twice before the capture, to compile kernels and fill caches. After the capture, two replays are
    compared bit for bit with the samples of these runs. The graph is not used if there is no CUDA device, if the model
    or solver makes the CPU wait for the GPU, if the capture fails, or if the samples differ. Every call then runs the
    loop step by step, and both a UserWarning and the attribute `why` give the reason.

    Args:
        model: See [`sample`][gms_fast.sample]. A replay reads the weights from the memory addresses that they had at
            capture, so you may change weights in place but must not move them. The autocast setting at capture remains
            in effect.
        steps: See [`sample`][gms_fast.sample].
        compile: Whether to use `torch.compile(..., fullgraph=True)` instead of a CUDA graph. This works on any device.
            The samples then equal those of `sample` only up to rounding, because the compiler fuses operations. The
            compile time is printed to stderr.
        solver: See [`sample`][gms_fast.sample].
        n: See [`sample`][gms_fast.sample].
        shape: See [`sample`][gms_fast.sample].
        schedule: See [`sample`][gms_fast.sample].
        timesteps: See [`sample`][gms_fast.sample].
        prediction: See [`sample`][gms_fast.sample].
        seed: Seed of each replay, unless the call passes a different one.
        sample_offset: See [`sample`][gms_fast.sample].
        step_offset: See [`sample`][gms_fast.sample].
        x_T: Initial state of each replay, unless the call passes a different one.
        clip: See [`sample`][gms_fast.sample].
        denoise: See [`sample`][gms_fast.sample].
        condition: Condition of each replay, unless the call passes a different one. Its tensors are copied to the
            state's device.
        batch_size: See [`sample`][gms_fast.sample].
        device: See [`sample`][gms_fast.sample].
        dtype: See [`sample`][gms_fast.sample].

    Returns:
        Graphed: callable `(seed, *, condition, x_T)` that returns the samples (n, *shape).

    Raises:
        ValueError: See [`sample`][gms_fast.sample].
        TypeError: See [`sample`][gms_fast.sample]. `noise`, `callback` and `progress` are not accepted because they
            run on the CPU, outside the graph.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> draw = gms_fast.graphed(model, 5, n=4)  # on a CPU, this warns and makes no graph
        >>> torch.equal(draw(7), gms_fast.sample(model, 5, n=4, seed=7))
        True
        >>> draw.why
        'CUDA graphs need a CUDA device: got cpu'
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
    """Inputs of the loop that may change from call to call."""

    seed: Any  # ops.Seed, or the held tensor
    condition: dict[str, Any] | None
    start: Tensor | None  # x_T

    def held(self, device: torch.device) -> "Inputs":
        """Return copies on the device, which a graph reads."""
        seed = torch.as_tensor(ops.as_seed(self.seed))
        return Inputs(*(_copied(value, device) for value in (seed, self.condition, self.start)))


class Loop(NamedTuple):
    """Loop of `sample` with all that a capture fixes: `prepare` checks arguments, `walk` runs."""

    prepare: Callable[..., Run]
    walk: Callable[..., Tensor]

    def run(self, inputs: Inputs) -> Run:
        return self.prepare(condition=inputs.condition)

    def through(self, run: Run, inputs: Inputs) -> Tensor:
        return self.walk(run, seed=inputs.seed, x_T=inputs.start)

    def draw(self, inputs: Inputs) -> Tensor:
        """Draw the samples step by step."""
        run = self.run(inputs)
        return run.finished(self.through(run, inputs))


class NotCapturedError(Exception):
    """Reason why the loop cannot become a graph."""


Replay = Callable[[], Tensor]  # draws with the inputs held at that time


class Graphed:
    """Callable that replays the captured sampling loop.

    A single seed and one seed per sample need separate captures. The second capture is made when a call first needs it.

    Attributes:
        why: Reason that the loop runs step by step, or None if a graph is replayed.
    """

    def __init__(self, loop: Loop, given: Inputs, like: Tensor, sample_offset: int, *, compile: bool) -> None:
        self.why: str | None = None
        self._loop, self._given = loop, given
        self._samples, self._device, self._offset = len(like), like.device, sample_offset
        self._capture = _compiled if compile else _Graphs(like.device)
        self._replays: dict[int, tuple[Inputs, Replay]] = {}  # by the number of dimensions of the seed
        self._lock = threading.Lock()  # replays share their input and output tensors
        self._add(given)

    @torch.no_grad()
    def __call__(
        self, seed: ops.Seed | None = None, *, condition: dict[str, Any] | None = None, x_T: Tensor | None = None
    ) -> Tensor:
        """Draw the samples that `gms_fast.sample` draws for these arguments.

        Args:
            seed: 64-bit integer, or one per sample. Defaults to the seed passed to `graphed`.
            condition: Condition whose tensors have the same shapes and dtypes as those passed to `graphed`. Defaults
                to the condition passed to `graphed`.
            x_T: Initial state (n, *shape). Allowed only if `graphed` was given one, which is also the default.

        Returns:
            The samples, a tensor (n, *shape). Later calls do not overwrite this tensor.

        Raises:
            ValueError: If an argument does not match the capture, or if the model returns NaN or infinity.
            TypeError: If an argument has the wrong type.
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
        """Capture the loop for seeds of this kind, or note why it cannot be captured."""
        try:
            with torch.inference_mode(False), torch.no_grad():  # held tensors must stay writable in any mode
                held = given.held(self._device)
                self._replays[held.seed.ndim] = held, self._capture(self._loop, held)
        except NotCapturedError as reason:
            self.why = str(reason)
            self._replays.clear()
            warnings.warn(f"gms_fast.graphed runs the loop step by step: {self.why}", stacklevel=4)


# --- torch.compile ---


def _compiled(loop: Loop, held: Inputs) -> Replay:
    """Compile the loop by torch.compile. Raises NotCapturedError."""
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
        return x if bool(x.isfinite().all()) else loop.draw(held)  # its error names the step

    return replay


def _by_itself(function: Any) -> Callable[[Inputs], Tensor]:
    """Give the function its own code object: torch.compile makes at most eight graphs of one."""
    return FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)


# --- CUDA graphs ---


class _Graphs:
    """CUDA graphs on a device, which share their memory and are replayed one at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @cached_property
    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def __call__(self, loop: Loop, held: Inputs) -> Replay:
        """Capture the loop and check it. Raises NotCapturedError, and the model's own errors."""
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
        """Capture the loop as a graph that reproduces the loop's samples for two seeds."""
        run = loop.run(held)  # shared: its first calls find out which dtype and times the network takes
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
                    f"a replay differs from the loop by up to {float((x - wanted).abs().max()):.3g}: "
                    "does the model draw random numbers, or read numbers that change on the host?"
                )

        def replay() -> Tensor:
            graph.replay()
            drawn = x.clone()
            run.finite.report()
            return drawn

        return replay

    def _captured(self, draw: Replay) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Return a graph and the tensor that its replays write."""
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # cached casts must not be shared between a graph and other code
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                x = draw()
        except Exception as error:
            torch.cuda.synchronize()  # raises if the device is no longer usable
            cause = _cause(error)
            raise NotCapturedError(f"capturing failed at {_place(cause)}: {_line(cause)}") from None
        finally:
            torch.clear_autocast_cache()
        return graph, x


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Collect the places where the host waits for the GPU, each of which would break a capture."""
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
    """Return the first error of a chain: ending a capture raises another one."""
    return error if error.__context__ is None else _cause(error.__context__)


def _place(error: BaseException) -> str:
    """Return the line that raised an error; for torch.compile, the line that it was compiling."""
    frame = (getattr(error, "real_stack", None) or traceback.extract_tb(error.__traceback__))[-1]
    return f"{frame.filename}:{frame.lineno}"


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


# --- tensors held by a graph, and those given in their place ---


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part, device) for key, part in value.items()}
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value


def pairs(held: Inputs, given: Inputs) -> list[tuple[Tensor, Tensor]]:
    """Pair held tensors with those in their place. Raises ValueError if one does not fit."""
    return _pairs("condition", held.condition, given.condition) + _pairs("x_T", held.start, given.start)


def _pairs(name: str, held: Any, given: Any) -> list[tuple[Tensor, Tensor]]:
    if isinstance(held, dict) and isinstance(given, dict) and held.keys() == given.keys():
        return [pair for key in held for pair in _pairs(f"{name}[{key!r}]", held[key], given[key])]
    if isinstance(held, Tensor) and isinstance(given, Tensor) and _kind(held) == _kind(given):
        return [(held, given)]
    if given is held or (isinstance(given, _SCALARS) and type(given) is type(held) and given == held):
        return []
    raise ValueError(f"{name} must match the one given to graphed, {_kind(held)}: got {_kind(given)}")


def _kind(value: Any) -> str:
    """Describe the part of a value that a graph fixes."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"the keywords {', '.join(map(str, value))}"
    return repr(value) if isinstance(value, _SCALARS) else f"that {type(value).__name__}"
