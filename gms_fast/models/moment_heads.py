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
    """Model that adds heads for the second and third noise moments to any network.

    A call with x (B, *sample_shape), network times t (B,) and the network's conditions as keyword arguments returns
    [`NoiseMoments`][gms_fast.NoiseMoments] from one network call. e1 comes from the network, e2 and e3 from the heads.
    The heads are untrained until you call [`train_moment_heads`][gms_fast.training.train_moment_heads] or
    `from_pretrained`. The network stays in eval mode and is never changed.

    Args:
        network: Network or pipeline that [`wrap`][gms_fast.models.wrap] accepts, a wrapped network, or any module
            called as `(x, t)` that [`sample`][gms_fast.sample] accepts. It must be in eval mode.
        features: Name of the module whose input the heads read, as listed by `named_modules` of the network without
            PyTorch's wrappers. The input is a map (B, F, *grid) or tokens (B, N, F) on the grid of the sample or of its
            patches. Defaults to the norm, convolution or projection before the output, which is known for the kinds of
            network that `wrap` recognises.
        schedule: Noise schedule of the network, or its name. Defaults to the network's own.
        prediction: What the network's output represents: "noise", "x0", ..., as in [`sample`][gms_fast.sample].
            Defaults to the network's attribute.
        sample_shape: Shape of one sample. Defaults to the network's attribute.
        head: Architecture of the heads: "complex" (a residual block conditioned on the noise level) or "simple" (one
            convolution).
        moments: What the heads predict: "central" moments E[(eps - e1)^k|x_t] or "raw" moments E[eps^k|x_t].
        normalised: Whether to train the heads in the units of `gms_fast.models.normalised`, in which their targets are
            of order one at every noise level. Defaults to True for central moments and False for raw moments, for
            which no such units exist.
        data_std: Scale s of these units, roughly the standard deviation of the data.
        clip: Range (lo, hi) to which E[x_0|x_t] is clipped, both in computing the units of `normalised` and during
            sampling. None means no clipping, as for latents. Defaults to the network's own range, or to (-1, 1) if it
            has none.
        condition: Conditions for one sample, as keyword arguments. They are needed if the network cannot be called
            without conditions, because the constructor makes a trial call.
        layout: Layout of the activations, as stored in the attribute `layout`. If given, no trial call is made.

    Raises:
        ValueError: If `features` does not exist or does not fit the sample shape, if the network is in training mode,
            or if its schedule, prediction or sample shape is unknown.
        TypeError: If `network` is not callable or is not a module.

    Examples:
        >>> network = gms_fast.load("digits")
        >>> model = gms_fast.models.MomentHeads(network, "out")
        >>> images = gms_fast.data.load("digits")
        >>> model = gms_fast.training.train_moment_heads(model, images, steps=2, out="run",
        ...                                              batch_size=8, progress=False)
        >>> model.save_pretrained("heads")
        >>> model = gms_fast.models.MomentHeads.from_pretrained("heads", network)

    Note:
        Apply classifier-free guidance to this model, `ClassifierFree(model, ..)`, and not to the network inside it.
        The central moments are then those of the conditional network. If the network has a learned variance, the heads
        replace it: only e1 is taken from the network.

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
        """Settings of the heads as plain Python values."""
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
        """Network without wrappers."""
        host = getattr(self.network, "host", None)
        return unwrapped(self.network) if host is None else host.bare

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype in which the network expects x."""
        said: torch.dtype | None = attribute(self.network, "dtype")
        return said or dtype_of_weights(self.bare)

    @property
    def needed(self) -> Sequence[str]:
        """Names of the conditions that every call must supply."""
        return attribute(self.network, "needed", ())

    @property
    def untrained(self) -> bool:
        """True if the heads were never trained."""
        return self._zeros(self.heads.out[-1])

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the heads by name. All other parameters are frozen."""
        return {name: weight for name, weight in self.named_parameters() if name.startswith("heads.")}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the heads, without the network, to `moment_heads.safetensors` in a folder.

        The file also stores the config of the heads, the schedule, a record of the training and a fingerprint of the
        network's weights. If the network was loaded by `gms_fast.io.network`, its source is stored too.

        Args:
            folder: Folder to write to. It is created if it does not exist.

        Raises:
            ValueError: If the heads have weights that are NaN or infinite.
        """
        said = {"config": self.config, "schedule": self.schedule.described, "record": self.record}
        said |= {"network": saved_heads.fingerprint(self.bare), "source": self.source}
        saved_heads.write(Path(folder), self.heads.state_dict(), said)

    @classmethod
    def from_pretrained(cls, folder: str | Path, network: Any) -> "MomentHeads":
        """Load trained heads from a folder and attach them to their network.

        Args:
            folder: Folder written by `save_pretrained`.
            network: Network that the heads were trained on, in any form that the constructor accepts. It may be in a
                narrower dtype than during training.

        Returns:
            MomentHeads in eval mode.

        Raises:
            FileNotFoundError: If the folder contains no heads.
            ValueError: If the file is damaged, or if the network, schedule or prediction is not the one that the heads
                were trained with.
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
        """Set the heads to training or eval mode. The network stays in eval mode.

        Args:
            mode: True for training mode, False for eval mode.

        Returns:
            This model.
        """
        self.training = mode
        self.heads.train(mode)
        return self

    def observed(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Call the network once, and return its output and the inputs of `heads`.

        Args:
            x: States (B, *sample_shape).
            t: Network times (B,).
            **condition: Conditions of the network.

        Returns:
            The network's output, in the form given by `prediction`, and the tuple (activations, x, arctan(sigma/(alpha
            s))) with s = `data_std`.

        Raises:
            ValueError: If the activations and x do not have the same number of rows.
        """
        y, h, level = self._observed(x, t, condition)
        return y, (h, x, level.angle)

    def _observed(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Tensor, NoiseLevel]:
        given = x.clone()  # networks may write to their input, and x is used below
        y, seen = self._watch.during(lambda: self.first_moment(given, t, **condition))
        h = self._watch.one(seen)
        if len(h) != len(x):
            raise ValueError(
                f"features must have one row for each of {len(x)} samples: {self.features!r} got {len(h)}; apply "
                "guidance to the model with heads, not inside it, and give conditions one row, or one row per sample"
            )
        return y, h, self.levels(t, x)

    def first_moment(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Return the network's output, in the form given by `prediction`, without the heads.

        Args:
            x: States (B, *sample_shape).
            t: Network times (B,).
            **condition: Conditions of the network.

        Returns:
            Tensor shaped like x.
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
        """Infer the layout of the activations from two calls with one sample of noise.

        Raises ValueError if the calls disagree.
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
                    f"condition must be given, with {wanted} for one sample: the constructor calls the network once"
                ) from error
            raise
        if first.shape != x.shape:
            raise ValueError(f"network must return a tensor like x, {tuple(x.shape)}: got {tuple(first.shape)}")
        if (apart := float((first - again).abs().max())) > _SAME * float(first.abs().max()):
            raise ValueError(
                f"network must be deterministic, without dropout: two calls with the same input differ by {apart:g}"
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
        raise ValueError("network must not have heads already: got MomentHeads; pass its attribute `network`")
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
