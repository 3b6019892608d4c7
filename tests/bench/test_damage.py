"""Files from strangers: right content, or a ValueError that names the file and the key, within bounds."""

import io as bytes_io
import json
import threading
import zipfile
from collections import OrderedDict

import damage
import damage_files
import numpy as np
import pytest
import safetensors.torch
import torch

from gms_fast import data, io, solvers, statistics
from gms_fast.storage import pickles, tensors
from gms_fast.storage.reading import json_value, most
from gms_fast.storage.schema import short

pytestmark = pytest.mark.usefixtures("one_thread")

CASES, GROUPS = 320, 16


@pytest.mark.parametrize("group", range(GROUPS))
def test_damaged_files_are_refused_by_name_or_read_right(group):
    """Others than those that the figures of docs/faults.md are of."""
    numbers = range(group, CASES, GROUPS)
    assert [problem for n in numbers if (problem := damage.check(damage.Case(1, n)))] == []


def test_cases_can_be_run_alone(tmp_path):
    case = next(damage.cases(seed=3, first=51))
    assert (case.seed, case.number) == (3, 51)
    found = []
    for name in "ab":
        damage.shutil.copytree(damage_files.whole(case.kind, damage._ROOT / "whole"), tmp_path / name)
        found.append(case.damage(tmp_path / name)[0].read_bytes())
    assert found[0] == found[1]
    assert damage.check(case) is None


def judged(load, tmp_path, sound=lambda found: True):
    (tmp_path / "x").write_text("x")
    kind = damage_files.Kind(lambda folder: None, ("x",), load, sound)
    return damage.outcome(kind, tmp_path, tmp_path / "x").problem


def refuse(text):
    raise ValueError(text)


def test_checks_find_what_is_wrong_with_a_loader(tmp_path):
    assert judged(lambda folder: refuse(f"{folder / 'x'} is damaged"), tmp_path) is None
    assert "does not name it" in judged(lambda folder: refuse("something"), tmp_path)
    assert "advises" in judged(lambda folder: refuse("x: set weights_only=False"), tmp_path)
    assert "ZeroDivisionError" in judged(lambda folder: 1 / 0, tmp_path)
    assert "not right" in judged(lambda folder: 1, tmp_path, lambda found: False)
    assert "something in it ran" in judged(lambda folder: damage._MARKER.write_text(""), tmp_path)
    assert "MiB" in judged(lambda folder: np.ones(600 << 17).sum(), tmp_path)


def saved(tmp_path, key=None, value=None, inside="config"):
    """A saved model, with one value of its description changed."""
    io.save(damage_files.network(), tmp_path / "m")
    file = tmp_path / "m" / io.CONFIG
    described = json.loads(file.read_text())
    if key is not None:
        described[inside][key] = value
    file.write_text(json.dumps(described))
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_size", float("nan"), "it holds NaN, wanted finite numbers"),
        ("dropout", float("nan"), "it holds NaN"),
        ("dropout", 1.5, r"config\.dropout is 1\.5, wanted a finite number in \[0, 1\)"),
        ("out_channels", 0, r"config\.out_channels is 0, wanted an integer from 1"),
        ("image_size", 1e12, r"config\.image_size is 1000000000000\.0, wanted an integer"),
        ("num_res_blocks", 10**6, r"config\.num_res_blocks is 1000000, wanted an integer from 1 to 1000"),
        ("num_res_blocks", True, r"config\.num_res_blocks is True, wanted an integer"),
        ("channel_mult", [1] * 10**5, r"config\.channel_mult is \[1, 1, .*\] of 100000, wanted a list of 1 to 32"),
        ("strange", 1, r"config\.strange is not known, wanted some of image_size"),
        ("head", "other", r"config\.head is 'other', wanted one of None, 'simple', 'complex'"),
    ],
)
def test_description_out_of_bounds_is_named(tmp_path, key, value, said):
    folder = saved(tmp_path, key, value)
    with pytest.raises(ValueError, match=rf"{folder}/config\.json does not describe a model: .*{said}"):
        io.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_res_blocks", 1000),
        ("channel_mult", [1, 2]),
        ("model_channels", 64),
        ("in_channels", 3),
        ("attention_resolutions", []),
        ("use_scale_shift_norm", False),
        ("head", ["simple", "complex"]),
        ("out_channels", 2),
    ],
)
def test_description_of_another_network_than_the_weights_is_named_before_one_is_built(
    tmp_path, key, value, monkeypatch
):
    folder = saved(tmp_path, key, value)
    monkeypatch.setattr(io, "MomentUNet", lambda **_: pytest.fail("a network was built"))
    with pytest.raises(ValueError, match=rf"model\.safetensors is of another model than config\.json says: {key} is "):
        io.load(folder)


@pytest.mark.parametrize("value", [[1, 2, 64], [1, 1]])
def test_resolutions_without_effect_are_no_other_network(tmp_path, value):
    folder = saved(tmp_path, "attention_resolutions", value)
    assert io.load(folder).config["attention_resolutions"] == value


@pytest.mark.parametrize("T", [1e12, 10**12, "1000", None, float("inf")])
def test_schedule_out_of_bounds_is_named(tmp_path, T):
    folder = saved(tmp_path)
    described = json.loads((folder / io.CONFIG).read_text())
    described["schedule"] = {"name": "VPLinear", "T": T}
    (folder / io.CONFIG).write_text(json.dumps(described))
    with pytest.raises(
        ValueError, match=r"config\.json .*: (T must be an integer from 2 to 1000000: got|it holds Inf)"
    ):
        io.load(folder)


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}")])
def test_deep_json_is_named(tmp_path, open_, close):
    folder = saved(tmp_path)
    (folder / io.CONFIG).write_text(open_ * 100_000 + "1" + close * 100_000)
    with pytest.raises(ValueError, match=r"config\.json does not describe a model: it is nested too deeply"):
        io.load(folder)


def test_json_that_is_read_in_two_ways_is_refused():
    with pytest.raises(ValueError, match="it has the key 'a' twice"):
        json_value('{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match=r"more than .* lists and mappings"):
        json_value("[" + "[]," * (1 << 19) + "[]]")
    assert json_value('{"a": Infinity}', infinite=True) == {"a": float("inf")}
    with pytest.raises(ValueError, match="it holds Infinity"):
        json_value("[Infinity]")


def test_archive_that_unpacks_without_bound_is_refused(tmp_path):
    file = tmp_path / "d.npz"
    file.write_bytes(damage._zeros(600))
    assert file.stat().st_size < 3 << 20
    with pytest.raises(ValueError, match=rf"{file} cannot be read: it unpacks to 629\d+ bytes .*: pack it less"):
        data.load(file)
    file.write_bytes(damage._zeros(48))
    assert data.load(file).shape == (48, 1, 1024, 1024)
    assert most(file.stat().st_size, 100) == 64 << 20


def spoilt(value):
    weights = damage_files.network().state_dict()
    name = "out.2.bias"
    return weights | {name: value(weights[name])}, name


SPOILT = {
    "NaN": lambda w: w * float("nan"),
    "infinity": lambda w: w + float("inf"),
    "integers": lambda w: w.int(),
    "complex": lambda w: w.to(torch.complex64),
}


@pytest.mark.parametrize("value", SPOILT.values(), ids=SPOILT)
def test_weights_that_are_no_finite_numbers_are_named(tmp_path, value):
    weights, name = spoilt(value)
    wanted = rf"{name}.*wanted f(inite|loating-point) numbers"
    folder = saved(tmp_path)
    safetensors.torch.save_file(weights, folder / io.WEIGHTS)
    with pytest.raises(ValueError, match=rf"{folder}/model\.safetensors: .*{wanted}"):
        io.load(folder)
    for file, save in {
        "r.pt": torch.save,
        "r.safetensors": safetensors.torch.save_file,
        "r.npz": lambda w, path: np.savez(path, **{n: v.numpy() for n, v in w.items()}),
    }.items():
        save(weights, tmp_path / file)
        with pytest.raises(ValueError, match=rf"checkpoint {tmp_path / file}: .*{wanted}"):
            io.load(tmp_path / file)


@pytest.mark.parametrize("value", SPOILT.values(), ids=SPOILT)
def test_weights_that_are_no_finite_numbers_are_not_saved(tmp_path, value):
    model = damage_files.network()
    model.out[2].bias = torch.nn.Parameter(value(model.out[2].bias.detach()), requires_grad=False)
    with pytest.raises(ValueError, match=r"model has weights that are no.*: out\.2\.bias"):
        io.save(model, tmp_path / "m", dtype=torch.float32)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floating_types_are_read(tmp_path, dtype):
    weights = {name: w.to(dtype) for name, w in damage_files.network().state_dict().items()}
    torch.save(weights, tmp_path / "r.pt")
    loaded = io.load(tmp_path / "r.pt", image_size=8).state_dict()
    assert all(torch.equal(loaded[name], w.float()) for name, w in weights.items())


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (statistics.load, "../models/mnist"),
        (statistics.load_gaussian, "../models/mnist"),
        (statistics.load_gaussian, "mnist/../digits"),
        (solvers.load_table, "../models/mnist/5"),
        (solvers.load_table, "mnist/../mnist/5"),
        (io.load, "../models/mnist"),
    ],
)
def test_names_do_not_leave_the_package(load, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(name)


def test_what_is_embedded_is_found_by_name():
    assert statistics.load("digits").sample_shape == (1, 8, 8)
    assert statistics.load_gaussian("mnist").sample_shape == (1, 28, 28)
    assert solvers.load_table("mnist/5").steps == 5


# --- torch's files ---


def state():
    base = torch.arange(12.0)
    return {
        "weights": {"a": base.view(3, 4).t(), "b": base[3:5], "c": torch.tensor(2.5), "d": torch.zeros(0, 3)},
        "kinds": [base.half(), base.bfloat16(), base.double(), base.long(), base > 3, base.to(torch.complex64)],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": [1, -1, 2**40, 2.5, None, True, (), (1,), (1, 2, 3, 4), "text", float("inf")],
        "module": torch.nn.Linear(2, 2).state_dict(),
        "size": torch.Size([1, 2]),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(*(w.float() if w.is_floating_point() else w for w in (a, b)))
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path, zipped):
    torch.save(state(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = pickles.read(tmp_path / "x.pt")
    assert same(torch.load(tmp_path / "x.pt"), found)
    assert same(state()["weights"], found["weights"])
    assert found["weights"]["a"].untyped_storage().data_ptr() == found["weights"]["b"].untyped_storage().data_ptr()


def trained():
    """A checkpoint as training frameworks write it."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    network[1].weight = network[0].weight  # tied
    optimiser = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    weights = network.state_dict()
    return {
        "state_dict": weights,
        "ema": OrderedDict((name, value.bfloat16()) for name, value in weights.items()),
        "parameters": list(network.parameters()),
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [torch.optim.lr_scheduler.MultiStepLR(optimiser, [10, 20, 20]).state_dict()],
        "hyper_parameters": {"dtype": torch.float32, "device": [torch.device("cuda", 0), torch.device("cpu")]},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_training_frameworks_are_read(tmp_path, zipped):
    value = trained()
    torch.save(value, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    found = pickles.read(tmp_path / "x.ckpt")
    assert found["hyper_parameters"].pop("device") == ["cuda:0", "cpu"]
    del value["hyper_parameters"]["device"]
    assert same(value, found)
    assert found["lr_schedulers"][0]["milestones"] == {10: 1, 20: 2}
    tied = [found["state_dict"][f"{i}.weight"].data_ptr() for i in range(2)]
    assert tied[0] == tied[1]


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_a_training_framework_load(tmp_path, zipped):
    weights = damage_files.network().state_dict()
    torch.save(trained() | {"state_dict": weights}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    del (value := torch.load(tmp_path / "x.ckpt", weights_only=True))["ema"]
    torch.save(value, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    assert same(dict(io.load(tmp_path / "x.ckpt", image_size=8).state_dict()), dict(weights))


@pytest.mark.parametrize(
    "value",
    [
        {-1: 1, None: 2, 0.5: 3, (1, "a", None): 4, 1 << 62: 5},
        {"a": b"\x00\xff"},
        [torch.float32, torch.bfloat16],
        torch.ones(1).expand(5),
        torch.arange(3.0)[:, None].expand(3, 4),
        torch.randn(1 << 10).expand(128, 1 << 10),
        torch.imag(torch.tensor([1 + 2j, 3 - 4j]).conj()),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
    ],
    ids=["keys", "bytes", "dtypes", "repeated", "rows", "many rows", "negative", "conjugate"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_values_beside_the_weights_are_read(tmp_path, value, zipped):
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = pickles.read(tmp_path / "x.pt")
    assert same(torch.load(tmp_path / "x.pt", weights_only=True), found)
    assert same(value, found)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1, 65535]).to(torch.uint16),
        torch.tensor([1, 2**32 - 1]).to(torch.uint32)[1:],
        torch.tensor([0.5, 2]).to(torch.float8_e4m3fn),
    ],
    ids=lambda value: str(value.dtype),
)
def test_tensors_of_rare_types_are_read(tmp_path, value):
    torch.save([value], tmp_path / "x.pt")
    assert same([value], pickles.read(tmp_path / "x.pt"))


def test_tensors_that_repeat_their_elements_can_be_changed_in_place(tmp_path):
    torch.save(torch.ones(1).expand(5), tmp_path / "x.pt")
    assert torch.equal(pickles.read(tmp_path / "x.pt").add_(1), torch.full((5,), 2.0))


def test_sets_are_read_as_lists(tmp_path):
    torch.save({"a": {1, 2}, "b": frozenset([3])}, tmp_path / "x.pt")
    assert pickles.read(tmp_path / "x.pt") == {"a": [1, 2], "b": [3]}


def test_long_curve_is_read(tmp_path):
    curve = [[1000 * i, 0.5 + i, 0.25 + i] for i in range(75_000)]
    torch.save(curve, tmp_path / "x.pt")
    assert pickles.read(tmp_path / "x.pt") == curve


def test_unknown_marks_of_a_tensor_are_named(tmp_path):
    view = damage._Viewed(damage._Stored("0", 4), 0, (4,), (1,))
    view.arguments += ({"quantised": True},)
    said = refused(tmp_path, damage._torch_file({"w": view}, {"0": bytes(16)}))
    assert "{'quantised': True}, wanted no other marks than neg and conj" in said


@pytest.mark.parametrize("tensor", [torch.zeros((2,) * 20), torch.zeros(1000)], ids=["many axes", "one axis"])
def test_tensors_in_a_message_are_described(tensor):
    assert short([tensor]) == f"[a tensor {tuple(tensor.shape)} of torch.float32]"
    assert short({"a": b"x" * (1 << 20)}).startswith("{'a': b'xxx")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("place", ["all", "value", "key", "nested"])
def test_nothing_in_a_checkpoint_runs(tmp_path, zipped, way, place):
    payload = damage._Hashed(way)
    value = {"all": payload, "value": {"a": payload}, "key": {payload: 1}, "nested": {"a": [(payload,)]}}[place]
    file = tmp_path / "r.pt"
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    named = ["posix.system", "__builtin__.eval", "__builtin__.exec", "io.open", "posix.mkdir"][way]
    with pytest.raises(ValueError, match=rf"{file} is truncated or no checkpoint at all: it holds '{named}'") as error:
        io.load(file)
    assert not damage._MARKER.exists()
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("name", ["m/config.json", "m/model.safetensors", "r.pt", "r.npz", "d.npy", "d.npz"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_no_pickle_by_another_name_runs(tmp_path, name, protocol):
    saved(tmp_path)
    (tmp_path / name).write_bytes(damage.pickle.dumps(damage.Payload(0), protocol=protocol))
    load = data.load if name.startswith("d") else io.load
    with pytest.raises(ValueError, match=name.split("/")[-1]):
        load(tmp_path / name.split("/")[0])
    assert not damage._MARKER.exists()


def refused(tmp_path, content):
    file = tmp_path / "r.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is truncated or no checkpoint at all: ") as error:
        io.load(file)
    return str(error.value).partition("at all: ")[2]


def test_tensors_that_leave_their_storage_are_refused(tmp_path):
    """torch reads what lies behind it in memory."""
    stored = damage._Stored("0", 4)
    for count, offset, size, stride in (
        (4, 0, (5,), (1,)),
        (4, 1, (4,), (1,)),
        (4, 0, (2, 2), (4, 1)),
        (4, 4, (1,), (1,)),
    ):
        view = damage._Viewed(stored, offset, size, stride)
        assert "in a storage of 4 elements" in refused(
            tmp_path, damage._torch_file({"w": view}, {"0": bytes(4 * count)})
        )
    view = damage._Viewed(stored, 0, (10**9,), (0,))
    assert "that repeats 4 elements" in refused(tmp_path, damage._torch_file({"w": view}, {"0": bytes(16)}))
    long = damage._Viewed(damage._Stored("0", 100), 0, (100,), (1,))
    assert "storage '0' has 16 bytes, wanted 400" in refused(
        tmp_path, damage._torch_file({"w": long}, {"0": bytes(16)})
    )
    huge = damage._Viewed(damage._Stored("0", 10**12), 0, (1,), (1,))
    assert "more bytes than the file" in refused(tmp_path, damage._torch_file({"w": huge}, {"0": bytes(16)}))


def test_tensors_that_share_a_storage_without_bound_are_refused(tmp_path):
    stored = damage._Stored("0", 1 << 16)
    views = {f"w{i}": damage._Viewed(stored, 0, (1 << 16,), (1,)) for i in range(1000)}
    said = refused(tmp_path, damage._torch_file(views, {"0": bytes(4 << 16)}))
    assert "more than 4 times as many bytes as the file" in said


SHARED = b"\x80\x02)q\x01" + b"h\x01h\x01\x86q\x01" * 40 + b"h\x01"


def bytes_text(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def colliding(count):
    """Items with integers of one hash for keys."""
    return (
        b"".join(b"\x8a\x0a" + (i * ((1 << 61) - 1) << 3).to_bytes(10, "little") + b"Ns" for i in range(1, count + 1))
        + b"."
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\x80\x02]r\xff\xff\xff\x7f.", "holds no state dict"),  # memory 2^31 - 1
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", "BINBYTES8|bytes8|expected"),
        (b"\x80\x02" + b"N" * 1_500_001 + b".", "more than 1500000 opcodes"),
        (
            b"\x80\x02}K\x01\x85\x85K\x01s.",
            r"it has the key \(\(1,\),\), wanted text of at most 1000 characters, a number",
        ),
        (b"\x80\x02}" + bytes_text("k" * 1001) + b"Ns.", "it has the key 'kkk.*wanted text of at most 1000 characters"),
        (b"\x80\x02}" + colliding(1001), "and 1000 more keys that are neither text nor small integers"),
        (SHARED + b"ctorch\ndevice\nh\x01\x85R.", "it has the device"),
        (SHARED + b".", "more than .* values, those that are shared counted each time"),
        (b"\x80\x02}U\x01aX\x01\x00\x00\x00b" + SHARED[2:] + b"ss.", "no mapping|more than .* values"),
        (b"\x80\x02]q\x01h\x01a.", "holds itself"),
        (b"\x80\x02N" + b"\x85" * 1001 + b".", "nested too deeply"),
        (b"\x80\x02ccollections\nCounter\nK\x01\x85R.", "holds no state dict"),
        (b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.", "a mapping of 1, wanted pairs"),
        (b"\x80\x02ctorch\nSize\n]\x85R.", "the size \\[\\], wanted a tuple"),
        (b"\x80\x02cposix\nsystem\nU\x02id\x85R.", "it holds 'posix.system'"),
        (b"\x80\x02(cposix\nsystem\nU\x02ido.", "it holds 'posix.system'"),
        (b"(S'id'\niposix\nsystem\n.", "opcode"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "opcode STACK_GLOBAL"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02R.", "takes more than it has"),
        (b"\x80\x02h\x05.", "asks for memory 5"),
    ],
)
def test_pickles_that_take_or_call_what_they_should_not_are_refused(tmp_path, text, said):
    packed = bytes_io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x/data.pkl", text)
    (tmp_path / "r.pt").write_bytes(packed.getvalue())
    with pytest.raises(ValueError, match=rf"r\.pt .*({said})"):
        io.load(tmp_path / "r.pt")


@pytest.mark.parametrize(
    "text",
    [
        b"](" + b"N" * 200_000 + b"eq\x01" + b"](" + b"h\x01" * 200_000 + b"e.",
        b"](" + b"}" * 1_000_000 + b"e.",
        b"N" + b"\x85" * 1_000_000 + b".",
        b"}X\x00\x00\x20\x00" + b"k" * (1 << 21) + b"X\x00\x00\x20\x00" + b"k" * (1 << 21) + b"q\x01h\x01" * 10 + b".",
        b"ccollections\nOrderedDict\nq\x02]("
        + b"K\x01K\x01\x86" * 100_000
        + b"e\x85q\x01"
        + b"h\x02h\x01R" * 400_000
        + b".",
        b"ctorch._utils\n_rebuild_tensor\nq\x02((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
        b"K\x00))tq\x01]q\x03(" + b"h\x02h\x01R" * 490_000 + b"e.",
    ],
    ids=["wide", "empty", "deep", "long keys", "copies", "tensors"],
)
def test_long_pickles_take_bounded_time_and_memory(tmp_path, text):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + text)
        archive.writestr("x/data/0", bytes(4))
    kind = damage_files.Kind(
        lambda folder: None, ("x.pt",), lambda folder: io.load(folder / "x.pt"), lambda found: False
    )
    assert damage.outcome(kind, tmp_path, tmp_path / "x.pt").problem is None


@pytest.mark.parametrize("kind", ["released .pt", "released .pt of old", "training", "search"])
def test_shared_parts_are_refused_in_every_checkpoint(tmp_path, kind):
    whole = damage_files.whole(kind, damage._ROOT / "whole")
    name = damage_files.KINDS[kind].files[0]
    for number in range(40):
        folder = tmp_path / str(number)
        damage.shutil.copytree(whole, folder)
        data = damage.shared((folder / name).read_bytes(), damage.random.Random(number))
        (folder / name).write_bytes(data)
        assert damage.outcome(damage_files.KINDS[kind], folder, folder / name).problem is None


@pytest.mark.parametrize("key", ["parameters", "average", "best"])
def test_search_that_cannot_be_gone_on_with_is_named(tmp_path, key):
    """Its numbers are finite, but no table can be made of them."""
    damage_files._searched(tmp_path)
    file = tmp_path / "checkpoint.pt"
    value = torch.load(file)
    parameters = {name: w.clone().fill_(1.7e308) for name, w in value["average"].items()}
    value[key] = {"score": 0.5, "iteration": 1, "parameters": parameters} if key == "best" else parameters
    torch.save(value, file)
    with pytest.raises(ValueError, match=rf"{file} is damaged: "):
        damage_files._searched(tmp_path)


# --- safetensors ---


def test_own_reader_reads_what_the_library_writes_and_the_library_what_is_written(tmp_path):
    values = {"a": torch.rand(2, 3), "b": torch.rand(4).half(), "c": torch.tensor(7), "d": torch.zeros(0, 2)}
    safetensors.torch.save_file(values, tmp_path / "x", {"said": "é"})
    found, said = tensors.load(tmp_path / "x")
    assert said == {"said": "é"}
    assert all(same(found[name], value) for name, value in values.items())
    tensors.write(tmp_path / "y", values, {})
    assert all(same(w, values[n]) for n, w in safetensors.torch.load_file(tmp_path / "y").items())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            {"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 8]}},
            "'a' lies at bytes 0 to 8, wanted 4000000000",
        ),
        (
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
            "'a' lies at bytes 4 to 8, wanted 4 of them from 0",
        ),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "its tensors have 4 bytes, but 8 follow"),
        ({"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}, "header: a.dtype is 'X', wanted one of 'F64'"),
        (
            {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
            r"header: a.shape\[0\] is 2.0, wanted an integer",
        ),
        ([], "header: it is \\[\\], wanted names"),
    ],
)
def test_headers_that_are_wrong_are_named(tmp_path, header, said):
    folder = saved(tmp_path)
    text = json.dumps(header).encode()
    (folder / io.WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=rf"model\.safetensors is truncated or no safetensors file: {said}"):
        io.load(folder)


# --- while it changes ---


def test_model_that_is_saved_anew_is_read_as_a_whole(tmp_path):
    """Of two models that differ in description and weights, no load mixes them."""
    torch.manual_seed(0)
    models = [damage_files.network() for _ in range(2)]
    for i, model in enumerate(models):
        model.config["image_size"] = 8 + i
        with torch.no_grad():
            model.out[2].bias.fill_(i)
    io.save(models[0], tmp_path / "m")
    done = threading.Event()

    def write():
        while not done.is_set():
            for model in models:
                io.save(model, tmp_path / "m")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = [io.load(tmp_path / "m") for _ in range(30)]
    finally:
        done.set()
        writer.join()
    pairs = {(model.config["image_size"], float(model.out[2].bias[0])) for model in found}
    assert pairs <= {(8, 0.0), (9, 1.0)}
