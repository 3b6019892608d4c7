"""Shards: their content, and every way in which one can be broken."""

import io
import json
import os
import shutil
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from generated import NAMES, forked, made, statuses
from PIL import Image

from bench.faults import tracing
from gms_fast.generation.shards import FORMS, Cut, OtherRunError

SHAPE = (3, 5, 4)


@pytest.fixture(params=["npz", "png"])
def shards(request, tmp_path):
    return FORMS[request.param](tmp_path, Cut(11, 4), SHAPE, "some run")


def pictures(count, shape=SHAPE, seed=0):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "size"), [(1, 1), (8, 8), (9, 8), (21, 4), (7, 100)])
def test_cut_has_every_sample_once_and_names_in_order(n, size):
    cut = Cut(n, size)
    assert [i for part in range(len(cut)) for i in cut[part]] == [*range(n)]
    names = [cut.name(part) for part in range(len(cut))]
    assert names == sorted(names)


def test_names_have_as_many_digits_as_they_need():
    assert Cut(1000, 500).name(1) == "000000500-000000999"
    assert Cut(10**10 + 1, 10**10).name(0) == "00000000000-09999999999"


def test_shards_come_back_as_they_were(shards):
    assert shards.there(os.listdir(shards.folder)) == set()
    for part, count in enumerate((4, 4, 3)):
        shards.write(part, pictures(count, seed=part), device="some device")
        assert shards.has(part)
    assert shards.there([*os.listdir(shards.folder), "other"]) == {0, 1, 2}
    for part, count in enumerate((4, 4, 3)):
        found, said = shards.read(part)
        assert torch.equal(found, pictures(count, seed=part))
        assert (said["first"], said["count"], said["device"]) == (4 * part, count, "some device")
    shards.remove(1)
    assert not shards.has(1)
    assert len(os.listdir(shards.folder)) == 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["npz", "png"])
def test_shards_hold_every_grey_level(tmp_path, form, channels):
    shards = FORMS[form](tmp_path, Cut(1, 1), (channels, 16, 16), "run")
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, channels, 16, 16)
    shards.write(0, levels)
    assert torch.equal(shards.read(0)[0], levels)


def test_others_read_shards_as_well(tmp_path):
    made(tmp_path / "npz")
    made(tmp_path / "png", form="png")
    for name in NAMES:
        with np.load(tmp_path / "npz" / f"{name}.npz") as found:
            assert sorted(found.files) == ["images", "index", "made"]
            assert (found["images"].dtype, found["index"].dtype) == (np.uint8, np.int64)
            for i, picture in zip(found["index"], found["images"], strict=True):
                with Image.open(tmp_path / "png" / name / f"{i:09d}.png") as other:
                    assert np.array_equal(np.asarray(other), picture[0])
            said = json.loads(found["made"].tobytes())
            assert said.keys() == {"first", "count", "sha256", "run", "device"}


@pytest.mark.parametrize("shape", [SHAPE, (3, 2, 2)])
def test_shard_of_another_run_is_told_from_a_broken_one(shards, shape):
    shards.write(0, pictures(4))
    shards.run, shards.shape = "another run", shape
    with pytest.raises(OtherRunError, match=r"shard .*000000003.* belongs to the run some run, not to another run"):
        shards.read(0)


# --- broken npz shards ---


def changed(path, **arrays):
    """Write the file again with other arrays; arrays that are None are left out."""
    with np.load(path) as found:
        kept = {name: found[name] for name in found.files if name not in arrays}
    np.savez(path, **kept, **{name: value for name, value in arrays.items() if value is not None})


def cut_short(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(path, member):
    """Flip one bit of an array in the file, as a faulty disk does; its zip checksum stays."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
        data = bytearray(path.read_bytes())
        data[info.header_offset + 200 + info.file_size // 2] ^= 4
    path.write_bytes(bytes(data))


def said(path, **changes):
    """Write another `made` to the file."""
    with np.load(path) as found:
        made = {**json.loads(found["made"].tobytes()), **changes}
    changed(path, made=np.frombuffer(json.dumps(made).encode(), np.uint8))


def one_flipped(path):
    """Flip one bit of an image and write a consistent file again."""
    with np.load(path) as found:
        images = found["images"].copy()
    images[1, 0, 0, 0] ^= 1
    changed(path, images=images)


def pickled(path):
    changed(path, images=np.array([print, None], dtype=object))


def text(path):
    changed(path, images=np.array(["a", "b"]))


def twice(path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the duplicate name
        archive.writestr("images.npy", buffer.getvalue())


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: cut_short(path, 0.5),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("precious"),
    "flipped on the disk": lambda path: flipped(path, "images"),
    "flipped": one_flipped,
    "other index": lambda path: changed(path, index=np.arange(4, 8)),
    "index in another order": lambda path: changed(path, index=np.array([0, 1, 3, 2])),
    "index of two rows": lambda path: changed(path, index=np.zeros((2, 2), np.int64)),
    "no index": lambda path: changed(path, index=None),
    "no images": lambda path: changed(path, images=None),
    "no made": lambda path: changed(path, made=None),
    "made of nothing": lambda path: changed(path, made=np.zeros(0, np.uint8)),
    "made of nonsense": lambda path: changed(path, made=np.frombuffer(b"{nonsense", np.uint8)),
    "made of a list": lambda path: changed(path, made=np.frombuffer(b"[1]", np.uint8)),
    "made of no text": lambda path: changed(path, made=np.full(9, 255, np.uint8)),
    "deep made": lambda path: changed(path, made=np.frombuffer(b"[" * 9999, np.uint8)),
    "other count": lambda path: said(path, count=3),
    "other first": lambda path: said(path, first=4),
    "checksum of a number": lambda path: said(path, sha256=7),
    "other checksum": lambda path: said(path, sha256="0" * 64),
    "said what nobody asked for": lambda path: said(path, colour="red"),
    "no rows": lambda path: said(path, network_rows=0),
    "floats": lambda path: changed(path, images=np.zeros((4, *SHAPE), np.float32)),
    "big-endian": lambda path: changed(path, images=np.zeros((4, *SHAPE), ">u2")),
    "other shape": lambda path: changed(path, images=np.zeros((4, 3, 4, 5), np.uint8)),
    "fewer": lambda path: changed(path, images=np.zeros((3, *SHAPE), np.uint8)),
    "no array": lambda path: changed(path, images=np.uint8(3)),
    "pickled": pickled,
    "of text": text,
    "two of one name": twice,
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_array_shard_is_found_out_and_named(tmp_path, how):
    shards = FORMS["npz"](tmp_path, Cut(11, 4), SHAPE, "some run")
    shards.write(0, pictures(4))
    path = tmp_path / shards.name(0)
    BROKEN[how](path)
    with pytest.raises(ValueError, match=f"shard {path} is broken: ") as error:
        shards.read(0)
    assert not isinstance(error.value, OtherRunError)
    assert "\n" not in str(error.value)


# --- broken PNG shards ---


def painted(path, mode="RGB", size=(4, 5)):
    Image.new(mode, size, 3 if mode == "L" else (3, 3, 3)).save(path / "000000001.png")


def lines(path, **changes):
    file = path / "made.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


BROKEN_PICTURES = {
    "missing image": lambda path: (path / "000000002.png").unlink(),
    "extra image": lambda path: shutil.copy(path / "000000002.png", path / "000000004.png"),
    "extra file": lambda path: (path / "notes.txt").write_text("mine"),
    "no images": lambda path: [file.unlink() for file in path.iterdir()],
    "missing made": lambda path: (path / "made.json").unlink(),
    "empty made": lambda path: (path / "made.json").write_text(""),
    "nonsense": lambda path: (path / "made.json").write_text("{nonsense"),
    "other first": lambda path: lines(path, first=4),
    "other checksum": lambda path: lines(path, sha256="0" * 64),
    "changed image": painted,
    "larger image": lambda path: painted(path, size=(9, 9)),
    "grey image": lambda path: painted(path, "L"),
    "short image": lambda path: cut_short(path / "000000001.png", 0.5),
    "empty image": lambda path: (path / "000000001.png").write_bytes(b""),
    "swapped images": lambda path: [
        (path / one).rename(path / other)
        for one, other in (("000000001.png", "x"), ("000000002.png", "000000001.png"), ("x", "000000002.png"))
    ],
}


@pytest.mark.parametrize("how", BROKEN_PICTURES)
def test_broken_picture_shard_is_found_out_and_named(tmp_path, how):
    shards = FORMS["png"](tmp_path, Cut(11, 4), SHAPE, "some run")
    shards.write(0, pictures(4))
    path = tmp_path / shards.name(0)
    BROKEN_PICTURES[how](path)
    with pytest.raises(ValueError, match=str(path)) as error:
        shards.read(0)
    assert not isinstance(error.value, OtherRunError)


def test_broken_picture_shard_is_removed_with_all_that_is_of_it(tmp_path):
    shards = FORMS["png"](tmp_path, Cut(11, 4), SHAPE, "some run")
    shards.write(0, pictures(4))
    (tmp_path / shards.name(0) / "000000002.png").unlink()
    shards.remove(0)
    assert os.listdir(tmp_path) == []
    shards.remove(0)  # another process was quicker


def test_no_kill_leaves_half_a_picture_shard_while_it_is_removed(tmp_path):
    if not tracing.available():
        pytest.skip("processes cannot be traced here")
    shards, calls = FORMS["png"](tmp_path, Cut(4, 4), SHAPE, "some run"), 0
    shards.write(0, pictures(4))
    while tracing.killed(lambda: shards.remove(0), calls):
        if shards.has(0):
            assert torch.equal(shards.read(0)[0], pictures(4))
        shards.sweep(lambda name: False)
        assert set(os.listdir(tmp_path)) <= {shards.name(0)}
        shards.write(0, pictures(4))
        calls += 1
    assert calls > 4


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_processes_that_write_and_remove_one_shard_all_succeed(shards):
    def work():
        for _ in range(30):
            shards.write(0, pictures(4))
            shards.remove(0)
            shards.sweep(lambda name: False)

    assert statuses([forked(work) for _ in range(3)]) == [0] * 3
    assert os.listdir(shards.folder) == []


def test_scratch_of_shards_is_swept_but_for_claimed_ones(shards):
    """Sweep any shard name, as the run may have been cut differently, but no other file."""
    left = [f".{name}.0123abcd.partial" for name in (shards.name(0), shards.name(1), "000000000-000000008", "run.json")]
    for name in left:
        (shards.folder / name).mkdir()
    shards.sweep(lambda name: name == shards.cut.name(1))
    assert sorted(os.listdir(shards.folder)) == sorted([left[1], left[3]])


def test_picture_shard_that_holds_a_file_of_others_is_not_removed(tmp_path):
    shards = FORMS["png"](tmp_path, Cut(11, 4), SHAPE, "some run")
    shards.write(0, pictures(4))
    notes = tmp_path / shards.name(0) / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(FileExistsError, match=f"shard {notes.parent} holds other files .notes.txt.: move them"):
        shards.remove(0)
    assert len(os.listdir(notes.parent)) == 6
    notes.unlink()
    shards.remove(0)


def test_what_is_not_of_the_kind_of_a_shard_is_named(tmp_path):
    made(tmp_path)
    (tmp_path / f"{NAMES[0]}.npz").unlink()
    (tmp_path / f"{NAMES[0]}.npz").mkdir()
    with pytest.raises(IsADirectoryError, match=NAMES[0]):
        made(tmp_path)
    (tmp_path / f"{NAMES[0]}.npz").rmdir()
    assert made(tmp_path).drawn == 8
