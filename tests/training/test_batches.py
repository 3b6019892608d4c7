"""Training data: every form of it, the same batches after a kill, and errors."""

import itertools

import pytest
import torch
from host_networks import UNetModel
from small_heads import Small, heads, pictures
from tiny_networks import TINY
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gms_fast.models import MomentUNet, wrap
from gms_fast.storage import checkpoint
from gms_fast.training import batches, train_moment_heads, train_noise_network
from gms_fast.training.batches import Loaded, Wanted, Whole

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"warmup": 2, "progress": False, "checkpoint_every": 100}
X, Y = pictures(), torch.arange(24)


def with_classes(**options):
    """Heads on a network that needs `y`."""
    network = UNetModel(channels=1, num_classes=24, learned=False)
    return heads(wrap(network.eval(), schedule="linear"), condition={"y": torch.tensor([1])}, **options)


def wanted(model=None):
    return Wanted(heads() if model is None else model)


def read(source, steps, rows=slice(None)):
    """Images and conditions of some steps."""
    return [source.at(step, torch.Generator().manual_seed(step))[1](rows) for step in steps]


def assert_same(got, want):
    for (x, y), (x_want, y_want) in zip(got, want, strict=True):
        assert torch.equal(x, x_want)
        assert y.keys() == y_want.keys()
        assert all(torch.equal(y[name], y_want[name]) for name in y)


class Counted:
    """Repeated rounds of six batches of images with classes, which counts the batches read."""

    reads, rounds = 0, 0

    def __init__(self, length=True):
        if length:
            self.__class__ = type("Sized", (Counted,), {"__len__": lambda _: 6})

    def __iter__(self):
        self.rounds += 1
        for rows in torch.randperm(24).split(4):
            self.reads += 1
            yield X[rows] * torch.rand(()), {"y": Y[rows]}
        torch.rand(7)


class Once:
    """A generator, which cannot start again."""

    def __new__(cls):
        return (batch for batch in Counted())


def shuffled(**options):
    return DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, **options)


# --- as a whole ---


def test_tensors_are_drawn_from_at_random_with_their_conditions():
    source = Whole(X, {"y": Y}, 9)
    (x, given), (other, _) = read(source, (0, 1))
    assert x.shape == (9, 1, 4, 4)
    assert torch.equal(x, X[given["y"]])
    assert not torch.equal(x, other)
    share, _ = read(source, (0,), slice(2, 5))[0]
    assert torch.equal(share, x[2:5])


def test_data_are_told_from_other_data():
    prints = [Whole(X, {}, 2), Whole(X * 0.5, {}, 2), Whole(X, {"y": Y}, 2), Whole(X, {"y": Y + 1}, 2)]
    prints += [Loaded(list(X.split(n)), wanted(), None, 0) for n in (4, 6)]
    assert len({source.fingerprint for source in prints}) == 6


# --- in batches ---


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(X), batch_size=5),  # of lists of one tensor
        DataLoader(X, batch_size=5),
        list(X.split(5)),
        [(x, None) for x in X.split(5)],
        X.reshape(4, 6, 1, 4, 4).unbind(),
    ],
    ids=["TensorDataset", "tensor", "list", "pairs", "tuple"],
)
def test_batches_are_taken_in_their_order_and_again(data):
    source, order = Loaded(data, wanted(), None, 0), [x[0] if isinstance(x, (list, tuple)) else x for x in data]
    for step, (x, given) in enumerate(read(source, range(2 * len(order) + 1))):
        assert torch.equal(x, order[step % len(order)])
        assert given == {}


def test_conditions_come_by_name_or_are_the_only_one():
    model = with_classes()
    by_name, alone = (read(Loaded([(X, given), (X, given)], wanted(model), None, 0), (0, 1)) for given in ({"y": Y}, Y))
    assert_same(by_name, alone)
    assert torch.equal(alone[1][1]["y"], Y)


def test_loader_shuffles_by_the_seed_and_by_nothing_else():
    def some(seed):
        torch.rand(seed)  # earlier draws must not matter
        return read(Loaded(shuffled(), wanted(with_classes()), None, seed % 10), range(12))

    first = some(1)
    assert_same(some(11), first)
    assert not torch.equal(some(2)[0][0], first[0][0])
    rounds = [torch.cat([given["y"] for _, given in part]) for part in (first[:5], first[5:10])]
    assert all(torch.equal(found.sort().values, Y) for found in rounds)
    assert not torch.equal(*rounds)


KINDS = {"loader": shuffled, "with a length": Counted, "without": lambda: Counted(length=False)}


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [*itertools.product(KINDS, (1, 3, 5, 6, 8, 12, 13), (16,)), *itertools.product(["once"], (1, 3, 5), (6,))],
)
def test_reading_goes_on_where_another_process_ended(kind, first, last):
    kind, model = {**KINDS, "once": Once}[kind], with_classes()
    whole = read(Loaded(kind(), wanted(model), None, 7), range(last))
    assert_same(read(Loaded(kind(), wanted(model), None, 7), range(first, last)), whole[first:])


def test_earlier_rounds_are_not_read_again():
    data = Counted()
    read(Loaded(data, wanted(with_classes()), None, 0), (603,))
    assert (data.reads, data.rounds) == (1 + 4, 2)


def test_run_goes_on_with_the_batches_of_an_uninterrupted_one(tmp_path):
    """Steps 7 and 8 of rounds of five batches, whose dataset draws its own random numbers."""

    def train(name, stop=None):
        def shaken(rows):
            if stop is not None and len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(1)
            return torch.stack(rows) * torch.rand(())

        calls, model = [], heads()
        loader = DataLoader(X, batch_size=5, shuffle=True, collate_fn=shaken)
        options = {**QUIET, "checkpoint_every": 1}
        try:
            return train_moment_heads(model, loader, steps=12, out=tmp_path / name, **options)
        except KeyboardInterrupt:
            return model

    whole = train("whole").heads.state_dict()
    train("cut", stop=8)
    assert checkpoint.read(tmp_path / "cut" / "checkpoint.pt")["step"] == 8
    resumed = train("cut").heads.state_dict()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_reading_leaves_the_global_generator_alone():
    model = with_classes()
    torch.manual_seed(5)
    wanted_next = torch.rand(3)
    torch.manual_seed(5)
    read(Loaded(shuffled(), wanted(model), lambda x: x * torch.rand(()), 0), range(7))
    batches.encoded(X, lambda x: torch.rand(x.shape), 0)
    assert torch.equal(torch.rand(3), wanted_next)


# --- encoders ---


class Encoder:
    """An encoder with a random draw that halves the sides of images and counts them."""

    seen = 0

    def __call__(self, images):
        assert not torch.is_grad_enabled()
        self.seen += len(images)
        return (torch.nn.functional.avg_pool2d(images, 2) * torch.rand(())).requires_grad_()


def test_tensors_are_encoded_once_and_batches_as_they_come(tmp_path):
    large, encoder = torch.nn.functional.interpolate(X, scale_factor=2), Encoder()
    for name in ("one", "two"):  # the second goes on from the first's end
        train_moment_heads(heads(), large, steps=5, batch_size=8, out=tmp_path, encoder=encoder, **QUIET)
        assert encoder.seen == 24 * (1 if name == "one" else 2)
    encoder = Encoder()
    loader = DataLoader(large, batch_size=8)
    train_moment_heads(heads(), loader, steps=5, out=tmp_path / "loaded", encoder=encoder, **QUIET)
    assert encoder.seen == 5 * 8


def test_large_data_are_encoded_in_parts():
    parts = []
    found = batches.encoded(torch.zeros(300, 1), lambda x: parts.append(len(x)) or x + 1, 0)
    assert parts == [256, 44]
    assert torch.equal(found, torch.ones(300, 1))
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda x: x[:3], r"encoder must return a tensor with a row for each of 24 images: got \(3, 1, 4, 4\)"),
        (lambda x: {"latents": x}, "encoder must return a tensor with a row for each of 24 images: got dict"),
        (lambda x: x[..., :2], r"data must be \(N, 1, 4, 4\) for this model: got \(24, 1, 4, 2\)"),
        (lambda x: x * torch.nan, r"data must be finite and lie in \[-1, 1\]"),
    ],
)
def test_encoder_that_gives_something_else_is_refused(tmp_path, encoder, message):
    for data in (X, [X]):
        with pytest.raises(ValueError, match=message):
            train_moment_heads(heads(), data, steps=1, out=tmp_path / "run", encoder=encoder, **QUIET)
    assert not (tmp_path / "run").exists()


# --- errors ---

LATENTS = {"clip": None, "data_std": 1.0}


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (X / 2 + 0.5, {}, r"data must fill \[-1, 1\]: got \[0, 1\] alone"),
        ((X / 2 + 0.5) * 255, {}, r"data must be finite and lie in \[-1, 1\], .*: got 2\.59.* \.\. 254"),
        (torch.full_like(X, torch.nan), {}, "data must be finite"),
        (torch.full_like(X, torch.inf), LATENTS, "data must be finite"),
        (8 * torch.randn(24, 1, 4, 4), LATENTS, "data must have .* near the model's data_std = 1: got [78]"),
        (X / 10, LATENTS, "data must have .* near the model's data_std = 1: got 0.0"),
        (X[:, 0], {}, r"data must be \(N, 1, 4, 4\) for this model: got \(24, 4, 4\)"),
        (X[:0], {}, r"got \(0, 1, 4, 4\)"),
    ],
)
def test_data_of_another_unit_or_shape_are_refused(tmp_path, images, options, message):
    for data in (images, [images], DataLoader(TensorDataset(images), batch_size=24) if len(images) else [images]):
        with pytest.raises(ValueError, match=message):
            train_moment_heads(heads(**options), data, steps=1, out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (X / 2 + 0.5, {"clip": (0.0, 1.0)}),
        ((X > 0).float(), {}),  # two values may be a line drawing in any scale
        (8 * torch.randn(24, 1, 4, 4), {"clip": None, "data_std": 8.0}),
        (torch.zeros(24, 1, 4, 4), LATENTS),  # constant data has no scale
        (X.double(), {}),
    ],
)
def test_data_of_any_range_that_the_model_says_are_taken(tmp_path, images, options):
    train_moment_heads(heads(**options), images, steps=1, out=tmp_path, batch_size=4, **QUIET)


def test_later_batches_are_looked_at_as_the_first_one_is(tmp_path):
    for bad, message in ((X * 2, "finite and lie in"), (X[..., :2], r"got \(24, 1, 4, 2\)")):
        with pytest.raises(ValueError, match=message):
            train_moment_heads(heads(), [X, X, bad], steps=3, out=tmp_path, **QUIET)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": Y[:5]}, r"data must have a y for each of 24 images: got \(5,\)"),
        (Y[:5], r"data must have a y for each of 24 images: got \(5,\)"),
        ({"y": torch.tensor(3)}, r"data must have a y for each of 24 images: got \(\)"),
        ({"y": [1] * 24}, r"data must be images or \(images, \{name: tensor\}\): got dict beside the images"),
        ("labels", r"data must be images or \(images, \{name: tensor\}\): got str beside the images"),
        ({}, r"data must be \(images, condition\) with y: UNetModel depends on it"),
        (None, r"data must be \(images, condition\) with y: UNetModel depends on it"),
    ],
    ids=str,
)
def test_condition_of_other_rows_or_kind_or_none_is_refused(tmp_path, given, message):
    for data in ((X, given), [(X, given)]):
        with pytest.raises(ValueError, match=message):
            train_moment_heads(with_classes(), data, steps=1, out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_labels_for_a_network_that_asks_for_none_are_refused(tmp_path):
    unet = MomentUNet(**{**TINY, "image_size": 4}, attention_resolutions=(), head="simple")
    for model, name in ((heads(), "Small"), (unet, "MomentUNet")):
        for data in ((X, Y), [(X, Y)], shuffled()):
            with pytest.raises(ValueError, match=rf"images alone.*: {name} (takes no y|needs no condition)"):
                train_moment_heads(model, data, steps=1, out=tmp_path / "run", **QUIET)
    for train in (train_noise_network, train_moment_heads):
        with pytest.raises(ValueError, match="data must be images alone: MomentUNet takes no y"):
            train(unet, (X, {"y": Y}), steps=1, out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_loader_that_divides_its_data_among_ranks_is_refused(tmp_path):
    data = TensorDataset(X)
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    with pytest.raises(ValueError, match=r"same on every rank.*: got a loader with a DistributedSampler"):
        train_moment_heads(heads(), loader, steps=1, out=tmp_path, **QUIET)


def test_data_that_end_too_early_are_refused(tmp_path):
    with pytest.raises(ValueError, match="iterable more than once: it ended after 3"):
        train_moment_heads(heads(), iter(X.split(8)), steps=4, out=tmp_path / "run", **QUIET)
    with pytest.raises(ValueError, match="iterable more than once: it ended after 0"):
        train_moment_heads(heads(), [], steps=4, out=tmp_path / "none", **QUIET)
    train_moment_heads(heads(), iter(X.split(8)), steps=3, out=tmp_path / "enough", **QUIET)


@pytest.mark.parametrize("data", ["mnist5k", {"images": X}, 5, None, Small()], ids=lambda data: type(data).__name__)
def test_data_of_another_kind_are_refused(tmp_path, data):
    with pytest.raises(TypeError, match="data must be a tensor or an iterable of batches: got"):
        train_moment_heads(heads(), data, steps=1, out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_batch_size_is_for_data_that_come_in_none(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be None for data that comes in batches: got 8"):
        train_moment_heads(heads(), [X], steps=1, out=tmp_path, batch_size=8, **QUIET)
