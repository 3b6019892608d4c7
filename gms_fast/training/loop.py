"""Two-stage training: a noise network, then moment heads on the frozen network.

Every random number of step k comes from a generator that is seeded by (seed, k). A run that is killed and resumed
therefore uses the same batches, times and noise as an uninterrupted run. So do several processes that divide the rows
of each batch among them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import interrupts
from gms_fast.models.moment_heads import MomentHeads, check_eval
from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import Schedule
from gms_fast.storage import fingerprints
from gms_fast.storage.locks import locked_folder
from gms_fast.training import batches
from gms_fast.training.batches import Batches, Encoder, Loaded, Wanted, Whole
from gms_fast.training.losses import WEIGHTS, Loss, moment_loss, noise_loss
from gms_fast.training.noising import Noised, log_normal_times, noised, seed_of, sent, times
from gms_fast.training.ranks import Ranks, gathered, telling
from gms_fast.training.settings import BATCH_SIZE, Settings, Steering
from gms_fast.training.state import CHECKPOINT, State

Data = Tensor | tuple[Tensor, Any] | Iterable[Any]
Model = MomentUNet | MomentHeads
_LEARN = (torch.float32, torch.float64)  # dtypes precise enough for small weight updates


def train_noise_network(
    model: MomentUNet,
    data: Data,
    *,
    steps: int,
    out: str | Path,
    encoder: Encoder | None = None,
    resume: bool = True,
    checkpoint_every: int = 500,
    checkpoint_seconds: float | None = None,
    progress: bool = True,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    compile: bool = False,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    label_dropout: float = Settings.label_dropout,
    precision: str = Settings.precision,
    seed: int = Settings.seed,
    weights: str = "uniform",
) -> MomentUNet:
    """Train a U-Net to predict the noise (stage 1).

    Training minimises E[w (e1(x_t, t) - eps)^2] over random times t, with x_t = alpha_t x_0 + sigma_t eps. With a
    discrete schedule, t is uniform over its times. With any other schedule, t has the density of the schedule's own
    grid.

    Args:
        model: A [`MomentUNet`][gms_fast.models.MomentUNet]. If it has moment heads, they are not trained.
        data: Images (N, C, H, W), as floats in the model's data range or as uint8, in which case 0 .. 255 is mapped to
            that range. For a network with classes, pass (images, labels) or (images, {"y": labels}) with labels (N,).
            Instead of tensors you can pass an iterable of batches in one of these forms, such as a DataLoader. Tensors
            stay on their device, so batches from a tensor on a GPU are selected on the GPU.
        steps: Total number of optimiser steps, >= 1.
        out: Folder for `checkpoint.pt` and `curve.csv` (step, loss, seconds).
        encoder: Callable that maps images to latents, for a model of latents. A tensor of images is encoded once; the
            batches of an iterable are encoded as they arrive. Default: no encoder.
        resume: True continues the run in `out`, if there is one. False raises FileExistsError if `out` contains a run.
        checkpoint_every: Number of steps between checkpoints, >= 1.
        checkpoint_seconds: Also write a checkpoint whenever this many seconds have passed; None to disable this.
        progress: Show a progress bar on stderr.
        batch_size: Number of images per step, over all ranks; None for 64. Must be None if the data is an iterable of
            batches.
        micro_batch: Number of rows that each rank passes through the network at a time; None for all its rows. Fewer
            rows need less memory. The result is the same up to rounding, except with dropout, which draws a new mask
            for each part.
        compile: Compile the network and the loss with torch.compile. The result is the same up to rounding, except with
            dropout.
        lr: Peak learning rate of Adam, > 0.
        warmup: Number of steps over which the learning rate rises to its peak, >= 0.
        decay: Decay of the learning rate: "cosine" or "linear" (both reach 0 after the last step), or "constant".
        ema: Decay of the averaged weights, in [0, 1). Step k uses (1 + k)/(10 + k) as long as that is smaller.
        clip_norm: Norm to which larger gradients are scaled down, > 0.
        flips: Mirror each image with probability 1/2 (wrong for digits).
        label_dropout: Probability, in [0, 1), of replacing a label by "no class". Classifier-free guidance needs a
            network that was trained with "no class". Must be 0 for a network without classes.
        precision: Arithmetic of the network, "float32" or "bfloat16". Weights and losses stay in float32.
        seed: Seed of all random numbers, in [0, 2^31). It also determines the order of an iterable that uses torch's
            global generator.
        weights: Loss weight w as a function of SNR = alpha^2/sigma^2. "uniform": 1. "min-snr": min(SNR, 5)/SNR.
            "edm": 1 + 4/SNR, with times drawn so that log(sigma/alpha) ~ N(-1.2, 1.2^2).

    Returns:
        `model`, in eval mode and with the averaged weights.

    Raises:
        ValueError: If a setting is out of range, the data does not suit the model, the checkpoint is truncated, or
            `out` contains a run with other settings.
        TypeError: If `data` is neither a tensor nor an iterable of batches.
        FileExistsError: If `out` contains a run and `resume` is False.
        FloatingPointError: If the loss becomes NaN or infinite.
        MemoryError: If the GPU's memory is too small for `micro_batch` rows.
        ConnectionError: If another rank has stopped.

    Examples:
        >>> images = gms_fast.data.load("digits")
        >>> net = gms_fast.models.MomentUNet(image_size=8, in_channels=1, model_channels=32,
        ...                                  channel_mult=(1,), num_res_blocks=1, head=None)
        >>> net = gms_fast.training.train_noise_network(net, images, steps=2, out="noise",
        ...                                             batch_size=8, progress=False)
        >>> net(images[:2], torch.tensor([500.0, 500.0])).shape
        torch.Size([2, 1, 8, 8])

    Note:
        On a GPU, training reads the loss and checks for signals every 16 steps. It uses fused Adam. If the network
        computes in 16 bits, its weights are stored channels-last.

        Under torchrun, or in a process group, the ranks divide the rows of each batch among them. Up to rounding, the
        result is the same as with one process, except with dropout. You can resume a run with a different number of
        ranks.

    References:
        "min-snr": Hang et al. 2023, arXiv 2303.09556. "edm": Karras et al. 2022, arXiv 2206.00364.
    """
    if precision == "float16":
        raise ValueError('precision must be "float32" or "bfloat16" for weights that learn: got "float16"')
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}: got {weights!r}")
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith(("out2", "out3"))}
    run = Settings(
        steps=steps,
        batch_size=_rows(batch_size, data),
        lr=lr,
        warmup=warmup,
        decay=decay,
        ema=ema,
        clip_norm=clip_norm,
        flips=flips,
        label_dropout=label_dropout,
        precision=precision,
        seed=seed,
    )
    stage = {"stage": "noise", "unused": ("normalised",)} | ({} if weights == "uniform" else {"weights": weights})
    steering = Steering(out, resume, checkpoint_every, checkpoint_seconds, micro_batch, compile, progress)
    _train(model, parameters, data, encoder, noise_loss(weights), stage, run, steering)
    return model


def train_moment_heads(
    model: Model,
    data: Data,
    *,
    steps: int,
    out: str | Path,
    target: str | None = None,
    encoder: Encoder | None = None,
    resume: bool = True,
    checkpoint_every: int = 500,
    checkpoint_seconds: float | None = None,
    progress: bool = True,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    compile: bool = False,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    label_dropout: float = Settings.label_dropout,
    precision: str = Settings.precision,
    seed: int = Settings.seed,
) -> Model:
    """Train the moment heads of a frozen noise network (stage 2).

    The heads learn E[eps^2|x_t] and E[eps^3|x_t] ("raw"), or E[(eps - e1)^k|x_t] for k = 2, 3 ("central"). The loss is
    the mean of (e2 - y^2)^2 + (e3 - y^3)^2, where y is eps for raw moments and eps - e1 for central ones. The network
    runs without dropout, and its weights do not change.

    Args:
        model: A [`MomentHeads`][gms_fast.models.MomentHeads] or a [`MomentUNet`][gms_fast.models.MomentUNet] with
            heads. A model with only the head of the second moment is allowed.
        data: As in [`train_noise_network`][gms_fast.training.train_noise_network]. For a network with conditions, you
            can also pass (images, condition), or an iterable of such pairs. The condition is a dict from keywords to
            tensors with one row per image. If the network needs only one condition, you can pass the tensor itself.
        steps: Total number of optimiser steps, >= 1.
        out: Folder for `checkpoint.pt` and `curve.csv` (step, loss, seconds).
        target: Moments to learn, "raw" or "central". Training sets `model.moments` to this value. None keeps the
            current value of `model.moments`.
        encoder: As in [`train_noise_network`][gms_fast.training.train_noise_network].
        resume: True continues the run in `out`, if there is one. False raises FileExistsError if `out` contains a run.
        checkpoint_every: Number of steps between checkpoints, >= 1.
        checkpoint_seconds: Also write a checkpoint whenever this many seconds have passed; None to disable this.
        progress: Show a progress bar on stderr.
        batch_size: Number of images per step, over all ranks; None for 64. Must be None if the data is an iterable of
            batches.
        micro_batch: Number of rows that each rank passes through the network at a time; None for all its rows.
        compile: Compile the network and the loss with torch.compile. The result is the same up to rounding.
        lr: Peak learning rate of Adam, > 0.
        warmup: Number of steps over which the learning rate rises to its peak, >= 0.
        decay: Decay of the learning rate: "cosine" or "linear" (both reach 0 after the last step), or "constant".
        ema: Decay of the averaged weights, in [0, 1). Step k uses (1 + k)/(10 + k) as long as that is smaller.
        clip_norm: Norm to which larger gradients are scaled down, > 0.
        flips: Mirror each image with probability 1/2 (wrong for digits).
        label_dropout: Probability, in [0, 1), of replacing a label by "no class", as in
            [`train_noise_network`][gms_fast.training.train_noise_network].
        precision: Arithmetic of the network, "float32", "bfloat16" or "float16". The heads always compute in float32.
        seed: Seed of all random numbers, in [0, 2^31).

    Returns:
        `model`, in eval mode and with the averaged weights of the heads.

    Raises:
        ValueError: If `model` has no heads, if `target` does not suit them, or in any of the cases listed for
            [`train_noise_network`][gms_fast.training.train_noise_network].
        TypeError: If `data` is neither a tensor nor an iterable of batches.
        FileExistsError: If `out` contains a run and `resume` is False.
        FloatingPointError: If the loss becomes NaN or infinite.
        MemoryError: If the GPU's memory is too small for `micro_batch` rows.
        ConnectionError: If another rank has stopped.

    Examples:
        >>> images = gms_fast.data.load("digits")
        >>> model = gms_fast.models.MomentHeads(gms_fast.load("digits"), "out")
        >>> model = gms_fast.training.train_moment_heads(model, images, steps=2, out="heads",
        ...                                              batch_size=8, progress=False)
        >>> gms_fast.sample(model, 3, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Guo et al. 2023, arXiv 2311.00941, section 3.1.
    """
    target = model.moments if target is None else target
    if target not in ("raw", "central"):
        raise ValueError(f'target must be "raw" or "central": got {target!r}')
    parameters = model.head_parameters()
    if not parameters:
        raise ValueError('model has no moment heads: create it with head="simple" or "complex"')
    run = Settings(
        steps=steps,
        batch_size=_rows(batch_size, data),
        lr=lr,
        warmup=warmup,
        decay=decay,
        ema=ema,
        clip_norm=clip_norm,
        flips=flips,
        label_dropout=label_dropout,
        precision=precision,
        seed=seed,
    )
    if isinstance(model, MomentHeads):
        check_eval(model.bare)
    if model.normalised and target != "central":
        raise ValueError(f'target must be "central" for a model with normalised=True: got {target!r}')
    stage = {"stage": "heads", "target": target, "unused": ()}
    steering = Steering(out, resume, checkpoint_every, checkpoint_seconds, micro_batch, compile, progress)
    state = _train(model, parameters, data, encoder, moment_loss(target), stage, run, steering)
    model.moments = target
    if isinstance(model, MomentHeads):
        model.record = {**asdict(run), "data": state.configuration["data"], "loss": state.smooth}
    else:
        model.config["moments"] = target
    return model


def _rows(batch_size: int | None, data: Data) -> int | None:
    """Return the batch size for `data`.

    Raises ValueError for a batch size beside data that already comes in batches.
    """
    if batches.whole(data) is not None:
        return BATCH_SIZE if batch_size is None else batch_size
    if batch_size is not None:
        raise ValueError(f"batch_size must be None for data that comes in batches: got {batch_size}")
    return None


def _train(
    model: Model,
    parameters: dict[str, nn.Parameter],
    data: Data,
    encoder: Encoder | None,
    loss_fn: Loss,
    stage: dict[str, Any],
    run: Settings,
    steering: Steering,
) -> State:
    folder, device = Path(steering.out), next(iter(parameters.values())).device
    if run.flips and len(model.sample_shape) < 3:
        raise ValueError(f"flips must be False for samples of shape {tuple(model.sample_shape)}, which are not images")
    if run.label_dropout and Wanted(model).none is None:
        raise ValueError(
            f"label_dropout must be 0 for a network without a null class: got {run.label_dropout}; make it with "
            "num_classes=K and null_class=True"
        )
    narrow = next((p.dtype for p in parameters.values() if p.dtype not in _LEARN), None)
    if narrow is not None:
        raise ValueError(
            f"model must have float32 or float64 weights where it learns: got {narrow}; call model.float() first, and "
            "choose the arithmetic with precision"
        )
    source = _source(model, data, encoder, run)
    frozen = {n: p for n, p in model.named_parameters() if n not in parameters}
    configuration = {
        **{k: v for k, v in stage.items() if k != "unused"},
        **run.described,
        "model": {k: v for k, v in model.config.items() if k not in ("moments", *stage["unused"]) and v is not False},
        "schedule": model.schedule.described,
        "data": source.fingerprint,
        "frozen": fingerprints.of_tensors(frozen.values()) if stage["stage"] == "heads" else None,
    }
    ranks = gathered(device)
    _laid_out(model, run, device)
    held, narrowed = ranks.alone(lambda: locked_folder(folder)), _learning_alone(model, parameters)
    with held, telling(), torch.enable_grad(), narrowed:
        learning = ranks.learning(list(parameters.values()))
        state = State(parameters, run, folder / CHECKPOINT, configuration)
        if (stored := ranks.by_first(lambda: state.stored(steering.resume))) is not None:
            state.take(stored)
            ranks.by_first(state.write_curve)
        model.train(stage["stage"] == "noise")  # a frozen network keeps its dropout off
        drawn = log_normal_times if stage.get("weights") == "edm" else times
        loss_fn = torch.compile(loss_fn) if steering.compile else loss_fn
        _run(_Step(model, source, loss_fn, drawn, ranks, learning, steering, device), state, steering)
    state.load_average()
    model.eval()
    return state


@contextmanager
def _learning_alone(model: Model, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Require gradients of `parameters` alone during the block."""
    learning = {id(p) for p in parameters.values()}
    was = {p: p.requires_grad for p in model.parameters()}
    try:
        for p in was:
            p.requires_grad_(id(p) in learning)
        yield
    finally:
        for p, flag in was.items():
            p.requires_grad_(flag)


def _source(model: Model, data: Data, encoder: Encoder | None, run: Settings) -> Batches:
    """Return the training data as batches by step.

    Raises ValueError or TypeError for data that does not suit the model.
    """
    wanted, given = Wanted(model), batches.whole(data)
    if given is None:
        if not isinstance(data, Iterable) or isinstance(data, (str, Mapping)):
            raise TypeError(f"data must be a tensor or an iterable of batches: got {type(data).__name__}")
        return Loaded(data, wanted, encoder, run.seed)
    images, condition = given[0], wanted.condition(given[1], len(given[0]))
    seen = wanted.images(images if encoder is None else batches.encoded(images, encoder, run.seed))
    wanted.scale(seen)
    size, raw = run.batch_size or BATCH_SIZE, None if encoder is None else images
    return Whole(seen, condition, size, wanted.floating, raw)


def _laid_out(model: Model, run: Settings, device: torch.device) -> None:
    """Make the weights of a U-Net channels-last for tensor cores.

    On a CPU the backward passes of some norms would fail in this layout.
    """
    if device.type == "cuda" and run.precision != "float32" and isinstance(model, MomentUNet):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _Step:
    """One training step on this rank's rows.

    A call with the state returns a tensor (3,) on the device: the loss of all rows, the number of ranks that received a
    signal to stop, and a positive number if a checkpoint is due by time.
    """

    def __init__(
        self,
        model: Model,
        source: Batches,
        loss_fn: Loss,
        drawn: Callable[[Schedule, int, torch.Generator], Tensor],
        ranks: Ranks,
        learning: Callable[[Sequence[Callable[[], Tensor]]], Tensor],
        steering: Steering,
        device: torch.device,
    ) -> None:
        self.model, self.source, self.loss_fn, self.drawn = model, source, loss_fn, drawn
        self.ranks, self.learning, self.steering, self.device = ranks, learning, steering, device
        self.wanted = Wanted(model)

    def __call__(self, state: State, signals: interrupts.PutOff) -> Tensor:
        run, device, seed = state.run, self.device, seed_of(state.run.seed, state.step)
        generator = torch.Generator().manual_seed(seed)
        total, some = self.source.at(state.step, generator)
        rows = self.ranks.rows(total)
        x_0, condition = some(rows)
        if run.flips:
            flipped = torch.rand(total, *[1] * (x_0.ndim - 1), generator=generator)[rows] < 0.5
            x_0 = torch.where(sent(flipped, x_0.device), x_0, x_0.flip(-1))
        if run.label_dropout:
            condition = self.wanted.dropped(condition, torch.rand(total, generator=generator)[rows] < run.label_dropout)
        batch = noised(self.model.schedule, x_0, condition, rows, total, generator, device, self.drawn)
        loss = state.update(lambda: self._learnt(batch, total, seed, getattr(torch, run.precision)))
        late = self.ranks.first and state.unsaved > (self.steering.checkpoint_seconds or float("inf"))
        told = sent(torch.tensor([float(signals.come), float(late)]), device).to(loss.dtype)
        return self.ranks.total(torch.cat([loss[None] / self.ranks.count, told]))

    def _learnt(self, batch: Noised, total: int, seed: int, dtype: torch.dtype) -> Tensor:
        """Compute gradients for this rank's rows out of `total`, and return their loss.

        The loss is this rank's term in the mean over the ranks.
        """
        parts = batch.split(self.steering.micro_batch)
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seed_of(seed, self.ranks.rank) if self.ranks.rank else seed)  # dropout
                return self.learning([partial(self._share, part, total, dtype) for part in parts])
        except torch.OutOfMemoryError as error:
            rows = len(parts[0].x_0)
            small = f"micro_batch must be less than {rows}" if rows > 1 else "the network must be smaller"
            raise MemoryError(f"{small}: {rows} rows at a time are more than {self.device} has memory for") from error

    def _share(self, part: Noised, total: int, dtype: torch.dtype) -> Tensor:
        return len(part.x_0) * self.ranks.count / total * self.loss_fn(self.model, part, dtype)


def _read_after(device: torch.device) -> int:
    """Return the number of steps between readings of losses and signals.

    Each reading waits for the GPU, so a GPU is read less often.
    """
    return 16 if device.type == "cuda" else 1


def _run(step: _Step, state: State, steering: Steering) -> None:
    """Run all remaining steps and write checkpoints.

    A checkpoint is written at the set intervals, at the end, and when a signal stops the run.
    """
    total, stage, shown = state.run.steps, state.configuration["stage"], steering.progress and step.ranks.first
    bar = tqdm(total=total, initial=state.step, disable=not shown, desc=stage, unit="step")
    every, unread = _read_after(step.device), list[Tensor]()
    with bar, interrupts.put_off() as check:
        while state.step < total:
            unread.append(step(state, check))
            due = state.step % steering.checkpoint_every == 0 or state.step == total
            if not due and len(unread) < every:
                continue
            told, unread = torch.stack(unread).tolist(), []
            for number, (loss, *_) in enumerate(told, state.step - len(told) + 1):
                state.record(loss, number)
            bar.set_postfix(loss=f"{state.smooth:.4f}", refresh=False)
            bar.update(len(told))
            stop, late = (any(row[i] > 0 for row in told) for i in (1, 2))
            if stop or late or due:
                step.ranks.by_first(state.save)  # an error, such as a full disk, ends all ranks
            if stop:
                check()
                raise KeyboardInterrupt  # another rank received the signal
