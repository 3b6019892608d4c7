"""Heads for the second and third noise moment on a frozen network of any kind.

This is the second training stage of Guo et al. 2023, arXiv 2311.00941, section 3.1. Two small heads on the activations
before the network's output learn E[(eps - e1)^k|x_t]. The network does not change.
"""

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gms_fast import prediction as predictions
from gms_fast import schedules
from gms_fast.assumptions import MOMENTS, PICTURES, UNSAID, attribute, missing, unwrapped
from gms_fast.models import hosts, saved_heads
from gms_fast.models.activations import Layout, Watch, module_of
from gms_fast.models.heads import FORMS, Heads
from gms_fast.models.hosts.base import dtype_of_weights
from gms_fast.models.level_table import LevelTable, NoiseLevel
from gms_fast.models.normalised import moments as normalised_moments
from gms_fast.models.unet import Zeros
from gms_fast.models.wrap import Wrapped, wrap
from gms_fast.network import Network, device_of
from gms_fast.schedules import Schedule
from gms_fast.storage.reading import refusing
from gms_fast.storage.schema import Choice, Flag, Real, argument
from gms_fast.types import NoiseMoments, as_range

_SAME = 0.02  # share of the largest output: above the rounding of nondeterministic kernels, in bfloat16 too


class MomentHeads(nn.Module):
    """Model that adds heads for the second and third noise moment to any network.

    A call with x (B, *sample_shape), network times t (B,) and the network's conditions as keywords returns
    [`NoiseMoments`][gms_fast.NoiseMoments] from one network call. e1 is the network's; e2 and e3 come from the heads,
    which are untrained until [`train_moment_heads`][gms_fast.training.train_moment_heads] or `from_pretrained`. The
    network stays in eval mode and is never changed.

    Args:
        network: A network or pipeline that [`wrap`][gms_fast.models.wrap] takes, its result, or any module called `(x,
            t)` that [`sample`][gms_fast.sample] takes; in eval mode.
        features: Name of the module, inside the network without torch's wrappers, whose input the heads read: a map
            (B, F, *grid) or tokens (B, N, F) on the grid of the sample or of its patches. None for the norm,
            convolution or projection before the output, which is known for the kinds of network that `wrap` recognises.
        schedule: Noise schedule of the network, or its name; None if the network has one.
        prediction: Meaning of the network's output: "noise", "x0", ...; None if the network has it as an attribute.
        sample_shape: Shape of one sample; None if the network has it as an attribute.
        head: Form of the heads. "complex": a residual block conditioned on the noise level. "simple": one convolution.
        moments: Meaning of the heads: "central" E[(eps - e1)^k|x_t] or "raw" E[eps^k|x_t].
        normalised: Train the heads in the units of `gms_fast.models.normalised`, in which outputs are of order one at
            every noise level. None means True for central moments and False for raw ones, which have no such units.
        data_std: s in those units, roughly the standard deviation of the data.
        clip: Range (lo, hi) that E[x_0|x_t] is clipped to in these units and in sampling; None for latents. Default:
            that of the network, else (-1, 1).
        condition: Conditions of one sample for the trial call in the constructor, where the network needs any.
        layout: Layout of the activations, as the attribute `layout` holds it; it replaces the trial call.

    Raises:
        ValueError: If `features` does not exist or does not fit the sample, the network is in training mode, or
            schedule, prediction or shape are unknown.
        TypeError: If `network` is neither callable nor a module with modules inside.

    Examples:
        >>> network = gms_fast.load("digits")
        >>> model = gms_fast.models.MomentHeads(network, "out")
        >>> images = gms_fast.data.load("digits")
        >>> model = gms_fast.training.train_moment_heads(model, images, steps=2, out="run",
        ...                                              batch_size=8, progress=False)
        >>> model.save_pretrained("heads")
        >>> model = gms_fast.models.MomentHeads.from_pretrained("heads", network)

    Note:
        Wrap classifier-free guidance around the model, `ClassifierFree(model, ..)`, not inside it. Central moments
        are then those of the conditional network. A network that learned a variance provides only e1 here; the
        heads replace its variance.

    References:
        Guo et al. 2023, arXiv 2311.00941.
    """

    def __init__(
        self,
        network: Any,
        features: str | None = None,
        *,
        schedule: Schedule | str | None = None,
        prediction: str | None = None,
        sample_shape: Sequence[int] | None = None,
        head: str = "complex",
        moments: str = "central",
        normalised: bool | None = None,
        data_std: float = 1.0,
        clip: tuple[float, float] | str | None = UNSAID,
        condition: Mapping[str, Any] | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        self.network = _as_model(network, schedule, prediction)
        bare = self.bare
        name = features if features is not None else getattr(getattr(self.network, "host", None), "features", None)
        if name is None:
            raise ValueError(
                f"features must be given: the last activations of {type(bare).__name__} are not known; name the norm, "
                "convolution or linear layer before its output"
            )
        module = module_of(bare, name)
        check_eval(bare)
        self.features, self.head = name, argument("head", head, Choice(FORMS))
        self.moments = argument("moments", moments, Choice(MOMENTS))
        self.normalised = moments == "central" if normalised is None else argument("normalised", normalised, Flag())
        if self.normalised and moments == "raw":
            raise ValueError('moments must be "central" for normalised heads: got "raw"')
        self.data_std = argument("data_std", data_std, Real(1e-6, 1e6))
        self.schedule, self._form, self.sample_shape = _described(self.network, schedule, prediction, sample_shape)
        said = attribute(self.network, "clip", PICTURES) if isinstance(clip, str) and clip == UNSAID else clip
        self.clip = None if said is None else as_range(said)
        self._watch = Watch(name)
        weakref.finalize(self, self._watch.put_on(module).remove)  # also if the constructor fails below
        self.layout = layout or self._tried(module, condition)
        self.prediction = "noise" if self.layout.of_moments else self._form
        channels = self.sample_shape[-1 if self.layout.kind == "last" else 0]
        axes = len(self.sample_shape) - 1
        self.heads = Heads(self.layout, channels, axes, head, positive=self.normalised)
        self.heads.to(device_of(bare))
        self._zeros = Zeros()
        self.levels = LevelTable(self.schedule, self.data_std).to(device_of(bare))
        self.record: dict[str, Any] | None = None  # settings and loss of the training
        self.source: dict[str, Any] | None = attribute(self.network, "source")
        self.origin: str | None = None  # folder from which it was loaded
        self.eval()

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the heads as plain values."""
        return {
            "features": self.features,
            "head": self.head,
            "layout": self.layout._asdict(),
            "moments": self.moments,
            "normalised": self.normalised,
            "data_std": self.data_std,
            "clip": None if self.clip is None else list(self.clip),
            "prediction": self._form,
            "sample_shape": list(self.sample_shape),
        }

    @property
    def bare(self) -> Any:
        """The network itself, without wrappers."""
        host = getattr(self.network, "host", None)
        return unwrapped(self.network) if host is None else host.bare

    @property
    def dtype(self) -> torch.dtype | None:
        """Type in which the network takes x."""
        said: torch.dtype | None = attribute(self.network, "dtype")
        return said or dtype_of_weights(self.bare)

    @property
    def needed(self) -> Sequence[str]:
        """Names of the conditions that every call must give."""
        return attribute(self.network, "needed", ())

    @property
    def untrained(self) -> bool:
        """True if the heads were never trained."""
        return self._zeros(self.heads.out[-1])

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the heads, by name; all others are frozen."""
        return {name: weight for name, weight in self.named_parameters() if name.startswith("heads.")}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the heads, without the network, to `moment_heads.safetensors` in a folder.

        The file also holds their config, the schedule, the record of the training and a fingerprint of the network's
        weights. If `gms_fast.io.network` loaded the network, the file holds its source too.

        Args:
            folder: Folder, created if missing.

        Raises:
            ValueError: If weights of the heads are NaN or infinite.
        """
        said = {"config": self.config, "schedule": self.schedule.described, "record": self.record}
        said |= {"network": saved_heads.fingerprint(self.bare), "source": self.source}
        saved_heads.write(Path(folder), self.heads.state_dict(), said)

    @classmethod
    def from_pretrained(cls, folder: str | Path, network: Any) -> "MomentHeads":
        """Load the heads in a folder for their network.

        Args:
            folder: Folder that `save_pretrained` wrote.
            network: The network of the training, as in the constructor; it may be in a narrower dtype.

        Returns:
            The model, in eval mode.

        Raises:
            FileNotFoundError: If the folder holds no heads.
            ValueError: If the file is damaged, or network, schedule or prediction differ from those of the training.
        """
        weights, said = saved_heads.read(folder)
        config = dict(said["config"])
        try:
            model = _as_model(network, None, None)
        except ValueError:  # the network has no schedule or prediction: use those of the file
            stored = schedules.stored(said["schedule"]) if isinstance(said["schedule"], dict) else None
            model = _as_model(network, stored, config["prediction"])
        schedule = saved_heads.schedule_of(said["schedule"], attribute(model, "schedule"), folder)
        if (form := attribute(model, "prediction")) not in (None, config["prediction"]):
            raise ValueError(
                f"prediction must be the one that {folder} was trained with, {config['prediction']}: got {form}"
            )
        made = cls(model, **{**config, "layout": Layout(**config["layout"])}, schedule=schedule)
        saved_heads.check_network(made.bare, said["network"], Path(folder))
        with refusing(f"moment heads of {folder} are damaged", folder):
            made.heads.load_state_dict(weights)
        made.record, made.source = said["record"], said["source"]
        return made

    def train(self, mode: bool = True) -> "MomentHeads":
        """Set the mode of the heads; the network stays in eval mode.

        Args:
            mode: True for training mode.

        Returns:
            The model itself.
        """
        self.training = mode
        self.heads.train(mode)
        return self

    def observed(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Call the network once, for its output and the inputs of `heads`.

        Args:
            x: States (B, *sample_shape).
            t: Network times (B,).
            **condition: Conditions of the network.

        Returns:
            The output in the form `prediction`, and the triple (activations, x, angle of the noise level).

        Raises:
            ValueError: If the activations have other rows than x.
        """
        y, h, level = self._observed(x, t, condition)
        return y, (h, x, level.angle)

    def _observed(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Tensor, NoiseLevel]:
        given = x.clone()  # networks may write to their input, and x is used below
        y, seen = self._watch.during(lambda: self.first_moment(given, t, **condition))
        h = self._watch.one(seen)
        if len(h) != len(x):
            raise ValueError(
                f"features must have a row for each of {len(x)} samples: {self.features!r} got {len(h)}; put guidance "
                "around the heads, not inside, and give conditions one row, or one for each sample"
            )
        return y, h, self.levels(t, x)

    def first_moment(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Return the network's output in the form `prediction`, without computing the heads.

        Args:
            x: States (B, *sample_shape).
            t: Network times (B,).
            **condition: Conditions of the network.

        Returns:
            Tensor like x.
        """
        if self.bare.training:
            check_eval(self.bare)
        output = self.network(x, t, **condition)
        return output if isinstance(output, Tensor) else output[0]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> NoiseMoments:
        y, h, level = self._observed(x, t, condition)
        second, third = self.heads(h, x, level.angle)
        wide = torch.promote_types(y.dtype, torch.float32)
        e1 = (
            y
            if self.prediction == "noise"
            else predictions.to_noise(self.prediction, y.to(wide), x, level.alpha, level.sigma)
        )
        if not self.normalised:
            return NoiseMoments(e1, second, third)
        return normalised_moments(e1, second, third, level.unit)

    @torch.no_grad()
    def _tried(self, module: nn.Module, condition: Mapping[str, Any] | None) -> Layout:
        """Find the layout of the activations by two calls with one sample of noise.

        Raises ValueError where the calls disagree.
        """
        device = device_of(self.bare)
        noise = torch.randn(1, *self.sample_shape, generator=torch.Generator().manual_seed(0))
        x = noise.to(device, self.dtype or noise.dtype)
        time = self.schedule.network_time(self.schedule.t_max).float().to(x.device).expand(1)
        network = Network(self.network, condition=dict(condition or {}), guarded=False)
        try:
            output, seen = self._watch.during(lambda: network(x.clone(), time))
            first, again = (y if isinstance(y, Tensor) else y[0] for y in (output, network(x.clone(), time)))
        except ValueError as error:
            if condition is None and self.needed:
                wanted = ", ".join(self.needed)
                raise ValueError(
                    f"condition must be given, {wanted} of one sample: the network is called here once"
                ) from error
            raise
        if first.shape != x.shape:
            raise ValueError(f"network must return a tensor like x, {tuple(x.shape)}: got {tuple(first.shape)}")
        if (apart := float((first - again).abs().max())) > _SAME * float(first.abs().max()):
            raise ValueError(
                f"network must be deterministic, without dropout: two calls with one input differ by {apart:g}"
            )
        layout = Layout.of(self.features, module, self._watch.one(seen).shape[1:], self.sample_shape)
        return layout._replace(of_moments=not isinstance(output, Tensor))


def check_eval(network: nn.Module) -> None:
    """Raise ValueError for a network with a part in training mode, where dropout may act."""
    name = next((name or type(part).__name__ for name, part in network.named_modules() if part.training), None)
    if name is not None:
        raise ValueError(f"network must be in eval mode: {name} is in training mode; call network.eval() first")


def _as_model(network: Any, schedule: Schedule | str | None, prediction: str | None) -> Any:
    """Return the network as a model called (x, t, **condition)."""
    bare = unwrapped(network)
    if isinstance(bare, MomentHeads):
        raise ValueError("network must not have heads already: got MomentHeads; give its attribute `network`")
    if not isinstance(bare, Wrapped) and hosts.known(bare):
        return wrap(network, schedule=schedule, prediction=prediction)
    if not callable(network):
        raise TypeError(f"network must be callable as network(x, t): got {type(network).__name__}")
    return network


def _described(
    network: Any, schedule: Schedule | str | None, prediction: str | None, shape: Sequence[int] | None
) -> tuple[Schedule, str, tuple[int, ...]]:
    own = attribute(network, "schedule")
    schedule = own if schedule is None else schedule
    if schedule is None:
        raise ValueError(missing(network, "schedule"))
    form = prediction or attribute(network, "prediction")
    if form not in predictions.names():
        wanted = f"prediction, one of {', '.join(predictions.names())},"
        raise ValueError(
            missing(network, "prediction", wanted) if form is None else f"{wanted} must be given: got {form!r}"
        )
    shape = attribute(network, "sample_shape") if shape is None else shape
    if shape is None:
        raise ValueError(missing(network, "sample_shape"))
    return schedules.build(schedule).asked_like(own if isinstance(own, Schedule) else None), form, tuple(shape)
