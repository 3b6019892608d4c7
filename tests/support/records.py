"""Digests of the bits of every op and of `sample`.

`python tests/support/records.py` writes tests/vectors/bits.json again. Inputs are counter-based draws, and networks
only add and multiply, so no library's rounding takes part. New digests mean new results for every user: say so in the
CHANGELOG.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator

import torch
from places import VECTORS

import gms_fast
from gms_fast import NoiseMoments, StepCoefficients, ops, schedules, solvers

FILE = VECTORS / "bits.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE = (3, 2, 5, 7)
W = (0.7, 0.2, -0.3)  # weights of x, of the data estimate and of a term
STEP = StepCoefficients.between(schedules.VPLinear(), 400, 300)


def network(x: torch.Tensor, t: torch.Tensor) -> NoiseMoments:
    """Return moments from sums and products, which round equally on every machine."""
    return NoiseMoments(0.8 * x, 0.64 * x * x + 0.3, 0.5 * x * x * x + 0.2)


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    """Return x, e1, e2, e3 like a network's, and z, u."""
    a, b, c, z = (ops.philox_normal(SHAPE, seed=seed) for seed in range(4))
    e2, e3 = b * b + 0.1 * a * a + 0.05, b * b * b + 0.3 * b + 0.02 * c
    return [t.to(dtype) for t in (0.7 * a + 0.2 * b, b, e2, e3, z, ops.philox_uniform(SHAPE, seed=5))]


def of_ops() -> Iterator[tuple[str, Callable[[], object]]]:
    """Return calls of each op with each of its options, by name."""
    for dtype in DTYPES:
        x, e1, e2, e3, z, u = inputs(dtype)
        name = str(dtype).removeprefix("torch.")
        var, third = e2.abs(), e3
        weights = torch.stack([z[0].float(), u[0].float(), x[0].float(), e1[0].float()])
        numbers = torch.tensor([0.9, -0.4, 0.3, 0.2])
        for fit in ("exact", "free", "adan", "gaussian"):
            options = {"fit": fit, "iterations": 5} if fit == "adan" else {"fit": fit}
            yield f"fit_mixture {fit} {name}", lambda o=options, m=(e1, var, third): ops.fit_mixture(*m, 0.02, **o)
            for component in ("element", "sample"):
                drawn = {"fit": fit, "component": component, "seed": 7, "step": 2, "sample_offset": 9}
                yield (
                    f"sample_mixture {fit} {component} {name}",
                    lambda o=drawn, m=(e1, var, third): ops.sample_mixture(*m, 0.02, **o),
                )
                for moments, central in itertools.product(("cumulant", "released"), (False, True)):
                    more = {"component": component, "moments": moments, "central": central}
                    yield (
                        f"gms_step {fit} {component} {moments} {'central' if central else 'raw'} {name}",
                        lambda o=options | more, m=(x, e1, e2, e3): ops.gms_step(*m, STEP, seed=3, **o),
                    )
            given = options | {"component": "element", "clip": None}
            yield (
                f"gms_step {fit} given noise {name}",
                lambda o=given, m=(x, e1, e2, e3), n=(z, u): ops.gms_step(*m, STEP, noise=n, **o),
            )
        yield (
            f"gms_step seeds {name}",
            lambda m=(x, e1, e2, e3): ops.gms_step(*m, STEP.as_tensor(), seed=[1, -2, 1 << 63], step_index=4),
        )
        terms = (e1, e2)
        yield (
            f"affine_noise {name}",
            lambda x=x, t=terms: ops.affine_noise(x, t, (0.9, -0.4, 0.3), 0.2, seed=torch.tensor(5), step_index=1),
        )
        yield f"affine_noise numbers {name}", lambda x=x, t=terms, w=numbers: ops.affine_noise(x, t, w, seed=6)
        yield f"affine_noise by element {name}", lambda x=x, t=terms, w=weights: ops.affine_noise(x, t, w, seed=6)
        data = {"data": (1.6, -1.25), "seed": 8, "step_index": 5}
        led = {**data, "unconditional": e2, "guidance": 2.5}
        yield f"linear_step {name}", lambda x=x, e=e1, t=(e3,), o=data: ops.linear_step(x, e, t, W, 0.2, **o)
        yield f"linear_step led {name}", lambda x=x, e=e1, t=(e3,), o=led: ops.linear_step(x, e, t, W, 0.2, **o)
        yield (
            f"linear_step by element {name}",
            lambda x=x, e=e1, t=(e3,), w=weights, o=data: ops.linear_step(x, e, t, w, 0.2, **o),
        )
        yield (
            f"gms_step led {name}",
            lambda m=(x, e1, e2, e3), u=e1 * 0.5: ops.gms_step(*m, STEP, seed=3, unconditional=u, guidance=2.5),
        )
        for draw in (ops.philox_normal, ops.philox_uniform):
            yield (
                f"{draw.__name__} {name}",
                lambda d=draw, to=dtype: d(SHAPE, seed=-1, step=3, stream=2, sample_offset=1 << 40, dtype=to),
            )


def _solvers() -> dict[str, solvers.Solver]:
    named = {name: solvers.build(name) for name in solvers.names()}
    return named | {
        "gms exact": solvers.GMS(fit="exact", component="sample"),
        "gms adan": solvers.GMS(fit="adan", moments="released", iterations=5),
        "gms gaussian": solvers.GMS(fit="gaussian", clip_pixel=None),
        "ddim eta": solvers.DDIM(eta=0.6),
        "ddim own noise": solvers.DDIM(eta=0.6, clipped_noise=False),
        "dpm-solver++ 3": solvers.DPMSolverPP(order=3),
        "dpm-solver++ sde": solvers.DPMSolverPP(sde=True),
        "er-sde exact": solvers.ERSDE(order=2, noise_scale="er_sde_2", quadrature="exact"),
        "unip 2": solvers.UniP(order=2),
        "euler churn": solvers.Euler(churn=3, s_noise=1.003),
        "heun churn": solvers.Heun(churn=3, s_noise=1.003),
        "unipc 4": solvers.UniPC(order=4, variant="bh1"),
    }


def of_sample() -> Iterator[tuple[str, Callable[[], object]]]:
    """Return runs of each solver on each kind of schedule, and the ways to start, end and draw."""
    draw = {"n": 3, "shape": (2, 4, 5), "seed": 11}
    kinds = {
        "linear": schedules.VPLinear(),
        "cosine": schedules.VPCosine(),
        "edm": schedules.EDM(),
        "flow": schedules.Flow(t_max=0.99),
    }
    for (name, solver), (kind, schedule) in itertools.product(_solvers().items(), kinds.items()):
        yield (
            f"sample {name} {kind}",
            lambda s=solver, k=schedule: gms_fast.sample(network, 6, solver=s, schedule=k, clip=(-1, 1), **draw),
        )
    linear = schedules.VPLinear()
    ways = {
        "timesteps": {"timesteps": (800, 500, 200, 30)},
        "x_T": {"timesteps": (800, 500, 200, 30), "x_T": ops.philox_normal((3, 2, 4, 5), seed=1)},
        "offsets": {"sample_offset": 5, "step_offset": 3},
        "seeds": {"seed": [3, 1, 4]},
        "no last call": {"denoise": False},
        "one time": {"timesteps": [300]},
        "v": {"prediction": "v"},
        "noise": {"noise": lambda step: (ops.philox_normal((3, 2, 4, 5), seed=step), torch.tensor([0.1, 0.5, 0.9]))},
        "batches": {"batch_size": 2},
    }
    for (way, options), name in itertools.product(ways.items(), ("gms", "ddpm", "er-sde", "dpm-solver++")):
        if way == "v" and name == "gms":
            continue
        model = (lambda x, t: network(x, t).e1) if way == "v" else network
        yield (
            f"sample {name} {way}",
            lambda m=model, s=name, o=options: gms_fast.sample(
                m, 5, solver=s, schedule=linear, clip=(-1, 1), **draw | o
            ),
        )


def digest(result: object) -> str:
    """Return the digest of the bits of one or several tensors."""
    tensors = result if isinstance(result, tuple) else (result,)
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def all_of() -> dict[str, Callable[[], object]]:
    """Return every recorded call by name."""
    return dict([*of_ops(), *of_sample()])


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: digest(call()) for name, call in all_of().items()}, indent=1) + "\n")
