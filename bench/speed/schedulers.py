"""Time of a pipeline's steps, our scheduler over diffusers'.

    python -m bench.speed.schedulers [--out FILE]

Both sides run in this process and take turns, on latents of the sizes of Stable Diffusion (4x64x64), Flux and SD3
(16x128x128). A run makes all 20 calls of `scale_model_input` and `step(output, t, x, return_dict=False)`, as pipelines
do, with one output. A figure is the median of the turns' ratios, with quartiles. `set_timesteps` is not timed. Before
the timing both must reach the same state, from a network that is linear in the state.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.records.record import environment, save
from bench.speed.bars import Bar
from bench.speed.cases import Case, Sets, normals
from bench.speed.gate import EPS, WrongResultError
from bench.speed.machine import Gpu, Machine
from bench.speed.timing import in_turn
from bench.speed.whole import ratio

CALLS = 20
SHAPES = ((1, 4, 64, 64), (4, 4, 64, 64), (1, 16, 128, 128), (4, 16, 128, 128))
BYTES = 12 * CALLS  # per element: state and network output are read, the next state is written
BAR, AIM = 0.5, 0.25
ROUNDINGS = 16  # roundings of a step on either side, each of at most EPS of the state's scale
LATENTS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = {  # name: (diffusers' scheduler, its keywords, our solver)
    "DDIM": ("DDIM", {**LATENTS, "clip_sample": False}, "ddim"),
    "DDIM, clipped": ("DDIM", LATENTS, "ddim"),
    "DPM-Solver++(2M)": ("DPMSolverMultistep", LATENTS, "dpm-solver++"),
    "SDE-DPM-Solver++(2M)": ("DPMSolverMultistep", {**LATENTS, "algorithm_type": "sde-dpmsolver++"}, "dpm-solver++"),
    "UniPC-2": ("UniPCMultistep", LATENTS, "unipc"),
    "DDPM": ("DDPM", {**LATENTS, "clip_sample": False}, "ddpm"),
    "EDM Euler": ("EDMEuler", {}, "ddim"),
    "flow matching, Euler": ("FlowMatchEulerDiscrete", {"shift": 3.0}, "ddim"),
}


def both(kind: str) -> tuple[Any, Any]:
    """Return (ours, diffusers'), with equally many steps."""
    import diffusers

    import gms_fast

    name, words, solver = KINDS[kind]
    theirs = getattr(diffusers, f"{name}Scheduler")(**words)
    ours = gms_fast.SolverScheduler.from_config(theirs.config, solver=solver)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(CALLS)
    return ours, theirs


def check(kind: str) -> None:
    """Raise WrongResultError if the two final states differ.

    Kinds that draw noise are skipped, because their noise differs.
    """
    if kind in ("DDPM", "SDE-DPM-Solver++(2M)"):
        return
    states = []
    for scheduler in both(kind):
        x = normals(1)((2, 4, 8, 8), "cpu", 0)[0] * getattr(scheduler, "init_noise_sigma", 1.0)
        scale = scaling(scheduler)
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * scale(x, t), t, x, return_dict=False)[0]
        states.append(x)
    error, most = (states[0] - states[1]).abs().max(), states[1].abs().max()
    if not error <= CALLS * ROUNDINGS * EPS * most:
        raise WrongResultError(f"{kind} disagrees: the largest error is {error:.1e} in states of {most:.1e}")


def scaling(scheduler: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a pipeline's scaling of the network's input; flow matching has none."""
    return getattr(scheduler, "scale_model_input", lambda x, t: x)


def loop(scheduler: Any) -> Callable[[torch.Tensor, torch.Tensor], object]:
    """Return a function that makes all steps from a state with one output.

    Each run restarts at the first time.
    """
    times, scale = list(scheduler.timesteps), scaling(scheduler)

    def steps(x: torch.Tensor, y: torch.Tensor) -> object:
        scheduler._step_index = None
        for t in times:
            scale(x, t)
            x = scheduler.step(y, t, x, return_dict=False)[0]
        return x

    return steps


def rows(machine: Machine, shape: tuple[int, ...], runs: int) -> list[dict]:
    """Time all kinds at a shape; return a row for each."""
    found = []
    sets = Sets(
        lambda seed: normals(2)(shape, machine.device, seed), machine.rotation(BYTES * torch.Size(shape).numel())
    )
    for kind in KINDS:
        ours, theirs = both(kind)
        cases = [Case("ours", loop(ours), sets, BYTES), Case("theirs", loop(theirs), sets, BYTES)]
        times = in_turn(machine, cases, runs)
        if times.failed:
            raise RuntimeError(f"{kind} was not measured: {times.failed}")
        shown = ratio(times.seconds["ours"], times.seconds["theirs"])
        print(
            f"{kind:24} {'x'.join(map(str, shape)):>14}  {shown[1]:.2f}  ({shown[0]:.2f} .. {shown[2]:.2f})", flush=True
        )
        found.append({"name": kind, "state": "x".join(map(str, shape)), "ratio": shown})
    return found


def measure(machine: Machine, shapes: tuple[tuple[int, ...], ...], runs: int) -> dict[str, object]:
    """Check both sides, then measure all figures."""
    for kind in KINDS:
        check(kind)
    found = [row for shape in shapes for row in rows(machine, shape, runs)]
    bars = [Bar(f"{r['name']}, {r['state']}: ours / theirs", r["ratio"][1], BAR, AIM, at_most=True) for r in found]
    print(*bars, sep="\n")
    return {"environment": environment(), "calls": CALLS, "rows": found, "bars": [bar.as_json() for bar in bars]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="turns of each side")
    parser.add_argument("--quick", action="store_true", help="one small state, to test the command")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(2)
    machine = Gpu() if args.device == "cuda" else Machine()
    result = measure(machine, ((1, 4, 8, 8),) if args.quick else SHAPES, args.runs)
    if args.out:
        save(args.out, result)


if __name__ == "__main__":
    main()
