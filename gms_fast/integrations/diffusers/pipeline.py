"""Pipelines of networks with moment heads, saved and loaded by diffusers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from gms_fast import schedules
from gms_fast.integrations.diffusers.named import GMSScheduler
from gms_fast.integrations.diffusers.schedulers import SolverScheduler
from gms_fast.integrations.diffusers.seeds import Generators
from gms_fast.models import MomentUNet
from gms_fast.prediction import Guided
from gms_fast.schedules import VP
from gms_fast.types import NoiseMoments


class MomentUNetModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Diffusers model that wraps a `MomentUNet` and returns its moments as channels.

    It is called with the times 0, .., T-1 of its training schedule.

    Args:
        arguments: Arguments of the [`MomentUNet`][gms_fast.models.MomentUNet], as in its attribute `config`.
        schedule: Training schedule, as in `Schedule.config`.

    Raises:
        ValueError: If `arguments` do not describe a network, or if `schedule` does not describe a schedule.

    Examples:
        >>> network = gms_fast.MomentUNetModel.of(gms_fast.load("digits"))
        >>> network(torch.zeros(2, 1, 8, 8), 500).sample.shape
        torch.Size([2, 3, 8, 8])
        >>> network.save_pretrained("digits")
        >>> gms_fast.MomentUNetModel.from_pretrained("digits").sample_shape
        (1, 8, 8)
    """

    __module__ = "gms_fast"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, arguments: dict[str, Any], schedule: dict[str, Any]) -> None:
        super().__init__()
        self.network = MomentUNet(**arguments, schedule=schedules.stored(schedule))

    @classmethod
    def of(cls, model: MomentUNet) -> "MomentUNetModel":
        """Wrap a network, which shares its weights with the wrapper.

        Args:
            model: Network with moment heads.

        Returns:
            The wrapped network.
        """
        made = cls(model.config, model.schedule.config)
        made.network = model
        return made

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one sample."""
        return tuple(self.network.sample_shape)

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> UNet2DOutput | tuple[Tensor]:
        """Return the noise moments as the channels of one tensor.

        Args:
            sample: State (B, C, H, W).
            timestep: Time () or (B,), an index into the training schedule.
            return_dict: If False, a tuple is returned.

        Returns:
            `UNet2DOutput` with a tensor (B, 2C or 3C, H, W), or a tuple with this tensor.
        """
        t = self.network.schedule.network_time(timestep).to(sample.device, torch.float32)
        output = self.network(sample, t.expand(len(sample)))
        moments = output if isinstance(output, tuple) else (output,)
        joined = torch.cat([moment for moment in moments if moment is not None], dim=1)
        return UNet2DOutput(sample=joined) if return_dict else (joined,)


def _check_network(name: str, network: object, wanted: type) -> None:
    if not isinstance(network, wanted):
        raise TypeError(
            f"{name} must be a {wanted.__name__}: got {type(network).__name__}; gms_fast.sample accepts every network, "
            "including MomentHeads"
        )


class GMSPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Diffusers pipeline for a network with moment heads, unconditional or class-conditional.

    Args:
        unet: A [`MomentUNetModel`][gms_fast.MomentUNetModel], or a diffusers network that returns the noise moments in
            2C or 3C channels. It is called as `unet(sample, timestep, class_labels=..)`.
        scheduler: A [`GMSScheduler`][gms_fast.GMSScheduler] or another scheduler of this package. Its `network_moments`
            must match the network.

    Raises:
        TypeError: If `unet` is not a diffusers model, or if `scheduler` is not a scheduler of this package.
        ValueError: If the scheduler's `network_moments` do not match the network.

    Examples:
        >>> pipe = gms_fast.GMSPipeline.of(gms_fast.load("digits"))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> images = pipe(batch_size=4, num_inference_steps=5).images
        >>> len(images), images[0].size
        (4, (8, 8))

    References:
        Guo et al. 2023, arXiv 2311.00941.
    """

    __module__ = "gms_fast"
    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        _check_network("unet", unet, ModelMixin)
        if not isinstance(scheduler, SolverScheduler):
            name = type(scheduler).__name__
            raise TypeError(f"scheduler must be a scheduler of gms_fast, such as GMSScheduler: got {name}")
        moments = scheduler.config.network_moments
        if isinstance(unet, MomentUNetModel) and moments != unet.network.moments:
            raise ValueError(
                f"network_moments of the scheduler must be {unet.network.moments}, as in the network: got {moments}"
            )
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def of(cls, model: MomentUNet, kind: type[SolverScheduler] = GMSScheduler, **options: Any) -> "GMSPipeline":
        """Build the pipeline for a model whose data lie in [-1, 1].

        The scheduler uses the betas and the kind of moments of the model, clips E[x_0|x_t] to [-1, 1], and uses the
        solver's own time grid.

        Args:
            model: Network with moment heads and a VP schedule.
            kind: Class of the scheduler (default `GMSScheduler`).
            **options: Keywords of the scheduler, which take precedence over these settings.

        Returns:
            The pipeline.

        Raises:
            TypeError: If the model is not a `MomentUNet`.
            ValueError: If the model has no VP schedule.
        """
        _check_network("model", model, MomentUNet)
        if not isinstance(model.schedule, VP):
            raise ValueError(f"model must have a VP schedule, as schedulers in diffusers do: got {model.schedule!r}")
        own = {"grid": "solver", "network_moments": model.moments, "clip_sample": True}
        betas = {"trained_betas": model.schedule.betas.tolist(), "num_train_timesteps": model.schedule.T}
        return cls(MomentUNetModel.of(model), kind(**{**own, **betas, **options}))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 10,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        negative_class_labels: Tensor | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images.

        Args:
            batch_size: Number n of images, >= 1 (default 1).
            num_inference_steps: Number of network evaluations per image (default 10).
            generator: One generator, or a list of one generator per image.
            class_labels: Classes (n,), required for a network with classes.
            guidance_scale: Scale of classifier-free guidance. 1 (default) turns guidance off. The higher central
                moments remain those of the conditional output.
            negative_class_labels: Classes (n,) for the unconditional output, required for guidance.
            latents: Initial noise (n, C, H, W) with standard deviation 1. By default, it is drawn from `generator`.
            output_type: "pil" (default) for PIL images; "np" for an array (n, H, W, C) or "pt" for a tensor (n, C, H,
                W), both with values in [0, 1]; or "latent" for the samples without conversion.
            return_dict: If False, a tuple is returned.
            callback_on_step_end: Function that is called after each step as `(pipe, i, t, {"latents": x})`. If it
                returns a dict with "latents", these replace the state.
            callback_on_step_end_tensor_inputs: Names of the tensors for the callback. Only "latents" is supported.

        Returns:
            `ImagePipelineOutput` with the images, or a tuple with the images.

        Raises:
            ValueError: If an argument is invalid or does not fit the network.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}")
        if set(callback_on_step_end_tensor_inputs) - {"latents"}:
            got = callback_on_step_end_tensor_inputs
            raise ValueError(f"callback_on_step_end_tensor_inputs must contain only latents: got {got}")
        labels = self._labels("class_labels", class_labels, batch_size)
        others = self._labels("negative_class_labels", negative_class_labels, batch_size, guidance_scale != 1)
        shape = (batch_size, *self._sample_shape)
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}: got {tuple(latents.shape)}")
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x: Tensor = latents.to(device) * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            seen = self.scheduler.scale_model_input(x, t)
            output: Tensor | NoiseMoments = self._asked(seen, t, labels)
            if guidance_scale != 1:
                output = self._led(output, self._asked(seen, t, others), guidance_scale, x)
            x = self.scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
            if callback_on_step_end is not None:
                x = (callback_on_step_end(self, i, t, {"latents": x}) or {}).get("latents", x)
        self.maybe_free_model_hooks()
        pictures = x if output_type == "latent" else self._pictures(x, output_type)
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)

    @property
    def _sample_shape(self) -> tuple[int, ...]:
        if isinstance(self.unet, MomentUNetModel):
            return self.unet.sample_shape
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))

    def _labels(self, name: str, labels: Tensor | None, n: int, needed: bool = True) -> dict[str, Tensor]:
        """Check the labels and return them as a keyword of the network.

        Raises ValueError if they do not fit it.
        """
        classes = getattr(self.unet.config, "num_class_embeds", None)
        if labels is None:
            if classes is not None and needed:
                raise ValueError(f"{name} must be given, with shape ({n},), because the network has {classes} classes")
            return {}
        if classes is None:
            raise ValueError(f"{name} must be None, because the network has no classes")
        labels = torch.as_tensor(labels, device=self._execution_device)
        if labels.shape != (n,):
            raise ValueError(f"{name} must have shape ({n},), one per sample: got {tuple(labels.shape)}")
        return {"class_labels": labels}

    def _asked(self, x: Tensor, t: Any, labels: dict[str, Tensor]) -> Tensor:
        return self.unet(x, t, **labels, return_dict=False)[0]

    def _led(self, output: Any, without: Tensor, scale: float, x: Tensor) -> Tensor | NoiseMoments:
        """Apply classifier-free guidance to a network's output."""
        channels = x.shape[1]
        if output.shape[1] == channels:
            return without + scale * (output - without)
        moments = NoiseMoments(*output.split(channels, dim=1))
        central = self.scheduler.config.network_moments == "central"
        return Guided(moments, without[:, :channels], scale).merged(central=central)

    def _pictures(self, x: Tensor, output_type: str) -> Any:
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np, pt or latent: got {output_type!r}")
        tensor = (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return tensor
        pictures = tensor.permute(0, 2, 3, 1).cpu().numpy()
        return pictures if output_type == "np" else self.numpy_to_pil(pictures)
