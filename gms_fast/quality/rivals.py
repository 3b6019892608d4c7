"""Samplers of other libraries, run on the same models: diffusers' schedulers."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gms_fast import ops
from gms_fast.quality.subjects import Subject
from gms_fast.run import INITIAL

NAME = "diffusers"


def scheduler(options: dict[str, Any], schedule: Any) -> Any:
    """Build diffusers' DPMSolverMultistepScheduler on a discrete VP schedule.

    Raises ImportError if diffusers is not installed, and ValueError for options that it does not know.
    """
    try:
        from diffusers import DPMSolverMultistepScheduler
    except ImportError as error:
        raise ImportError("solver diffusers needs diffusers: pip install gms_fast[diffusers]") from error
    if unknown := options.keys() - inspect.signature(DPMSolverMultistepScheduler).parameters.keys():
        raise ValueError(f"solver diffusers has no option {', '.join(sorted(unknown))}")
    return DPMSolverMultistepScheduler(trained_betas=schedule.betas.tolist(), **options)


def calls(options: dict[str, Any], times: Sequence[int]) -> int:
    """Return the network calls of a sample on these times."""
    return len(times) - (options.get("final_sigmas_type") == "sigma_min")


def samples(options: dict[str, Any], subject: Subject, times: Sequence[int], n: int, offset: int) -> Tensor:
    """Draw n samples by diffusers' loop, with one network call at each of its timesteps.

    The timesteps are `times`, or all but the last one if final_sigmas_type is "sigma_min", which stops there.
    """
    model = subject.model
    own = scheduler(options, model.schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers uses deprecated numpy
        own.set_timesteps(timesteps=list(times[: calls(options, times)]))
    shape = (n, *model.sample_shape)
    x = ops.philox_normal(shape, seed=0, stream=INITIAL, sample_offset=offset, dtype=torch.float32)
    x = x * float(model.schedule.sigma(times[0]))
    generator = torch.Generator().manual_seed(offset)
    for t in own.timesteps:
        e1 = model(x.to(subject.dtype), torch.full((n,), float(model.schedule.network_time(float(t))))).e1
        x = own.step(e1.float(), t, x, generator=generator).prev_sample
    return (x if subject.clip is None else x.clamp(*subject.clip)).to(subject.dtype)  # as diffusers' pipelines do
