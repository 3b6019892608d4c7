"""`generate`: the images of `sample`, in every form and cut, and wrong arguments."""

import numpy as np
import pytest
import torch
from generated import NAMES, SMALL, Net, fails_at, made
from toys import Model

import gms_fast
from bench.faults.kills import content
from gms_fast import shards
from gms_fast.generation import settings
from gms_fast.images import grey_levels

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(folder):
    """Images of a folder of arrays, in order."""
    found = [shards.read(file) for file in shards.files(folder)]
    assert [i for _, index in found for i in index] == [*range(sum(map(len, (index for _, index in found))))]
    return torch.from_numpy(np.concatenate([images for images, _ in found]))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert made(folder) == gms_fast.generation.Report(drawn=21)
    return folder


def test_folder_holds_the_run_and_nothing_else(one):
    assert sorted(path.name for path in one.iterdir()) == [*(f"{name}.npz" for name in NAMES), "run.json"]
    assert shards.count(one) == 21


def test_pictures_are_those_of_sample(one):
    asked = {"steps": 2, "solver": "ddpm"}
    batches = [gms_fast.sample(Net(), **asked, n=4, sample_offset=i) for i in range(0, 21, 4)]
    assert torch.equal(drawn(one), torch.cat([grey_levels(x) for x in batches])[:21])
    whole = grey_levels(gms_fast.sample(Net(), **asked, n=21))
    assert (drawn(one).int() - whole.int()).abs().max() <= 1  # a network may round differently in other batches


@pytest.mark.parametrize(
    "options",
    [{"n": 5}, {"n": 40}, {"shard_size": 4}, {"shard_size": 400}, {"shard_size": None}, {"n": 1}, {"n": 4}],
    ids=str,
)
def test_pictures_depend_neither_on_how_many_there_are_nor_on_how_they_are_cut(tmp_path, one, options):
    made(tmp_path, **options)
    got, want = drawn(tmp_path), drawn(one)
    assert len(got) == options.get("n", 21)
    both = min(len(got), len(want))
    assert torch.equal(got[:both], want[:both])


@pytest.mark.parametrize("batch_size", [1, 3, 21, 64])
def test_pictures_depend_on_the_batch_size_by_rounding_alone(tmp_path, one, batch_size):
    made(tmp_path, batch_size=batch_size, shard_size=None)
    assert (drawn(tmp_path).int() - drawn(one).int()).abs().max() <= 1


@pytest.mark.parametrize("options", [{"seed": 1}, {"steps": 3}, {"solver": "ddim"}], ids=str)
def test_pictures_depend_on_what_they_should(tmp_path, one, options):
    made(tmp_path, **options)
    assert (drawn(tmp_path).int() - drawn(one).int()).abs().max() > 5


def test_threads_of_torch_change_nothing_and_are_as_before(tmp_path, one):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        made(tmp_path)
        assert torch.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="broken network"):
            made(tmp_path / "x", Net(seen=fails_at(3)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert content(tmp_path / "x").keys() == {"run.json"}
    (tmp_path / "x" / "run.json").unlink()
    (tmp_path / "x").rmdir()
    assert content(tmp_path) == content(one)


def test_state_of_generators_changes_nothing_and_is_as_before(tmp_path, one):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = Net()
    torch.set_rng_state(before)
    made(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert content(tmp_path) == content(one)


@pytest.mark.parametrize("form", ["npz", "png"])
def test_shares_in_two_folders_are_the_whole_in_one(tmp_path, form):
    made(tmp_path / "whole", form=form)
    reports = [made(tmp_path / share[0], form=form, shard=share) for share in ("1/2", "2/2")]
    assert [report.drawn for report in reports] == [13, 8]
    together = {**content(tmp_path / "1"), **content(tmp_path / "2")}
    assert together == content(tmp_path / "whole")
    assert len(content(tmp_path / "1").keys() & content(tmp_path / "2").keys()) == 1  # the settings


def test_shares_in_one_folder_are_the_whole(tmp_path, one):
    for share, there in (("3/3", 0), ("1/3", 0), ("2/3", 0), ("1/2", 13)):
        assert made(tmp_path, shard=share).there == there
    assert content(tmp_path) == content(one)


# --- resuming ---


def test_the_same_call_again_draws_nothing(one):
    before = content(one)
    report = made(one, Net(seen=fails_at(0)))
    assert report == gms_fast.generation.Report(there=21)
    assert content(one) == before


@pytest.mark.parametrize("form", ["npz", "png"])
def test_what_is_missing_is_drawn(tmp_path, form):
    made(tmp_path, form=form)
    whole = content(tmp_path)
    for path in tmp_path.glob(f"{NAMES[1]}*"):
        [file.unlink() for file in path.iterdir()] and path.rmdir() if path.is_dir() else path.unlink()
    assert made(tmp_path, form=form) == gms_fast.generation.Report(drawn=8, there=13)
    assert content(tmp_path) == whole


def another():
    model = Net()
    with torch.no_grad():
        model.inner.bias += 1e-3
    return model


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"seed": 1}, "seed: 0 there, 1 asked for"),
        ({"n": 22}, "n: 21 there, 22 asked for"),
        ({"steps": 3}, "times: "),
        ({"timesteps": [900, 500, 3]}, "times: "),
        ({"solver": "ddim"}, "solver: 'ddpm' there, 'ddim' asked for"),
        ({"schedule": "cosine"}, "schedule: "),
        ({"batch_size": 2}, "batch_size: 4 there, 2 asked for"),
        ({"shard_size": 16}, "shard_size: 8 there, 16 asked for"),
        ({"form": "png"}, "form: 'npz' there, 'png' asked for"),
        ({"prediction": "v"}, "prediction: "),
        ({"clip": None}, "clip: "),
        ({"denoise": False}, "denoise: "),
        ({"dtype": torch.float64}, "dtype: 'torch.float32' there, 'torch.float64' asked for"),
        ({"shape": (1, 4, 5)}, "pictures: "),
        ({"condition": {"brightness": torch.zeros(21)}}, "condition: "),
        ({"condition": lambda index: {"brightness": index / 21}}, "condition: "),
        ({"decoder": torch.tanh}, "decoder: "),
        ({"model": another()}, "model: "),
        ({"model": Net(seed=1)}, "model: "),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_another_run_is_refused_by_what_is_different(one, options, key):
    before = content(one)
    with pytest.raises(ValueError, match="holds another run; choose another folder") as error:
        made(one, **options)
    message, *lines = str(error.value).splitlines()
    assert str(one) in message
    assert [line for line in lines if line.startswith(f"  {key}")], lines
    assert content(one) == before


def test_call_that_says_the_same_in_other_words_goes_on(one):
    same = {"schedule": gms_fast.schedules.VPLinear(), "prediction": "noise", "clip": (-1, 1), "denoise": None}
    solver = gms_fast.solvers.build("ddpm")
    assert made(str(one), **same, solver=solver, dtype=torch.float32, device="cpu", shape=[1, 4, 4]).there == 21


@pytest.mark.parametrize("version", ["gms_fast", "torch"])
def test_run_of_another_version_is_refused(tmp_path, monkeypatch, version):
    made(tmp_path)
    patched = (settings, "__version__") if version == "gms_fast" else (torch, "__version__")
    monkeypatch.setattr(*patched, "0.0.1")
    with pytest.raises(ValueError, match=r"versions: \{.*\} there, \{.*0\.0\.1.*\} asked for"):
        made(tmp_path)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1: got 0"),
        ({"n": -5}, "n must be at least 1: got -5"),
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"shard_size": 6}, "shard_size must be a multiple of batch_size = 4: got 6"),
        ({"shard_size": 0}, "shard_size must be at least 1: got 0"),
        ({"shard": "3/2"}, "shard must be K/N with K from 1 to N, such as 3/8: got '3/2'"),
        ({"shard": "0/2"}, "shard must be K/N"),
        ({"shard": "1"}, "shard must be K/N"),
        ({"shard": "-1/2"}, "shard must be K/N"),
        ({"shard": "1/4"}, "shard must be K/N with N at most 3, the number of shards: got 1/4"),
        ({"form": "gif"}, "form must be one of npz, png, none: got 'gif'"),
        ({"form": "none"}, 'form must not be "none" without features'),
        ({"verify": 0.0}, "verify must be a fraction of the samples"),
        ({"verify": 1.5}, "verify must be a fraction of the samples"),
        ({"verify": float("nan")}, "verify must be a fraction of the samples"),
        ({"steps": 0}, "steps"),
        ({"solver": "magic"}, "magic"),
        ({"shape": (4,)}, "samples must be floating-point images"),
        ({"shape": (2, 4, 4)}, "samples must be floating-point images"),
        ({"model": Model(lambda x, t: x, sample_shape=None)}, "shape must be given: this model"),
        ({"model": Model(lambda x, t: x, sample_shape=(1, 4, 4), clip=None)}, "decoder must be given for this model"),
        (
            {"model": Model(lambda x, t: x, sample_shape=(1, 4, 4), clip=(0.0, 1.0))},
            "decoder must be given for this model",
        ),
        ({"decoder": lambda x: x.flatten(1)}, r"outputs of decoder must be .*: got torch.float32 \(1, 16\)"),
        ({"decoder": lambda x: x.to(torch.uint8)}, "outputs of decoder must be floating-point images"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else ",".join(value),
)
def test_bad_argument_is_refused_before_there_is_a_folder(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n": 2.5}, "n"),
        ({"n": "9"}, "n"),
        ({"batch_size": None}, "batch_size"),
        ({"seed": 1.5}, "seed"),
        ({"shard": (1, 2)}, "shard"),
        ({"verify": "much"}, "verify"),
        ({"model": "mnist"}, "model"),
    ],
    ids=str,
)
def test_argument_of_another_type_is_refused_by_name(tmp_path, options, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name} "):
        made(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_others_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path} is not empty and holds no run.json: choose another folder"):
        made(tmp_path)
    assert content(tmp_path) == {"thesis.tex": b"mine"}


def test_files_of_others_in_the_folder_of_a_run_are_refused_by_name(tmp_path):
    made(tmp_path)
    for name in ("b", "a", "d", "c"):
        (tmp_path / f"{name}.txt").write_text("mine")
    before = content(tmp_path)
    for verify in (None, 0.5):
        with pytest.raises(FileExistsError, match=r"holds other files \(a.txt, b.txt, c.txt, ..\): choose"):
            made(tmp_path, verify=verify)
    assert content(tmp_path) == before


def test_what_killed_writers_left_is_nobodys(tmp_path, one):
    made(tmp_path)
    (tmp_path / f".{NAMES[0]}.npz.0123abcd.partial").write_text("half")
    (tmp_path / ".lock").write_text("{}")
    (tmp_path / f"{NAMES[0]}.npz").unlink()
    assert made(tmp_path).drawn == 8
    (tmp_path / ".lock").unlink(missing_ok=True)
    assert content(tmp_path) == content(one)


def test_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OSError, match=f"{tmp_path}/x"):
        made(tmp_path / "x")
    assert content(tmp_path) == {"x": b"mine"}


def test_samples_that_are_not_finite_are_no_pictures(tmp_path):
    with pytest.raises(ValueError, match=r"NaN|finite"):
        made(tmp_path, Model(lambda x, t: x * float("nan"), sample_shape=(1, 4, 4), clip=(-1, 1)))
    assert content(tmp_path).keys() == {"run.json"}


def test_defaults_are_those_of_the_function(tmp_path):
    """Call without the options of `SMALL`."""
    assert {*SMALL} == {"n", "batch_size", "shard_size", "steps", "solver"}
    gms_fast.generate(Net(), tmp_path, n=3, solver="ddim")
    assert [file.name for file in shards.files(tmp_path)] == ["000000000-000000002.npz"]
