"""Network outputs in a pipeline: a tensor, moments in channels, or a learned variance."""

from dataclasses import dataclass

from torch import Tensor

from gms_fast import prediction
from gms_fast.models.learned_variance import LearnedVariance
from gms_fast.types import NoiseMoments


@dataclass
class Outputs:
    """Reader of network outputs for a sample of C channels.

    Args:
        form: Meaning of a single tensor, a name of `gms_fast.prediction`.
        wanted: Number of moments that the solver reads; further ones are dropped.
        variance: `variance_type` of a DDPM scheduler. A learned variance is the second half of 2C channels.
        learned: Converter of a "learned_range" variance to E[eps^2|x_t]; None otherwise.
    """

    form: str
    wanted: int
    variance: str | None
    learned: LearnedVariance | None

    def read(self, output: Tensor | NoiseMoments, sample: Tensor, t: Tensor) -> Tensor | NoiseMoments:
        """Convert an output for the solver. Raises ValueError for other numbers of channels."""
        if isinstance(output, NoiseMoments) or output.shape == sample.shape:
            return output
        parts = output.shape[1] // sample.shape[1] if output.ndim > 1 and sample.ndim > 1 else 0
        if parts not in (2, 3) or output.shape != (len(sample), parts * sample.shape[1], *sample.shape[2:]):
            raise ValueError(
                f"model_output must be shaped like sample, {tuple(sample.shape)}, or have 2 or 3 times its channels "
                f"(moments of the noise): got {tuple(output.shape)}"
            )
        first, *more = output.chunk(parts, dim=1)
        if self.variance not in ("learned", "learned_range"):
            if self.form != "noise":
                raise ValueError(
                    f"prediction_type must be epsilon if model_output has {parts} times the sample's channels "
                    f"(moments of the noise): got {self.form}"
                )
            return NoiseMoments(first, *more[: max(self.wanted - 1, 0)])
        if self.wanted == 1:
            return first
        if self.learned is None:
            raise ValueError(
                f'variance_type must be "learned_range", or None for moments, if model_output has {parts} times the '
                f"sample's channels: got {self.variance!r}"
            )
        alpha, sigma, *_ = (level.to(first.dtype) for level in self.learned.at(t, sample))
        return NoiseMoments(
            prediction.to_noise(self.form, first, sample, alpha, sigma), self.learned.second(more[0], t)
        )
