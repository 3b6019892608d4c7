"""Foreign torch files: read as torch reads them, or refused by name; nothing in them runs."""

import io as bytes_io
import zipfile
from collections import OrderedDict

import pytest
import torch
from strange_files import same, saved

from bench.faults import damage, damage_files
from gms_fast import data, io
from gms_fast.storage import pickles

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path, zipped):
    torch.save(state(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = pickles.read(tmp_path / "x.pt")
    assert same(torch.load(tmp_path / "x.pt"), found)
    assert same(state()["weights"], found["weights"])
    assert found["weights"]["a"].untyped_storage().data_ptr() == found["weights"]["b"].untyped_storage().data_ptr()


def trained():
    """Return a checkpoint like those of training frameworks."""
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


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("place", ["all", "value", "key", "nested"])
def test_nothing_in_a_checkpoint_runs(tmp_path, zipped, way, place):
    payload = damage._Hashed(way)
    value = {"all": payload, "value": {"a": payload}, "key": {payload: 1}, "nested": {"a": [(payload,)]}}[place]
    file = tmp_path / "r.pt"
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    named = ["posix.system", "__builtin__.eval", "__builtin__.exec", "io.open", "posix.mkdir"][way]
    with pytest.raises(ValueError, match=rf"{file} is truncated or not a checkpoint: it holds '{named}'") as error:
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
    with pytest.raises(ValueError, match=rf"{file} is truncated or not a checkpoint: ") as error:
        io.load(file)
    return str(error.value).partition("not a checkpoint: ")[2]


def test_tensors_that_leave_their_storage_are_refused(tmp_path):
    """Refusal of tensors for which torch would read memory behind their storage."""
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
    """Return dictionary items whose integer keys have equal hashes."""
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
        (SHARED + b".", "more than .* values, shared ones counted each time"),
        (b"\x80\x02}U\x01aX\x01\x00\x00\x00b" + SHARED[2:] + b"ss.", "not a mapping|more than .* values"),
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
