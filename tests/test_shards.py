"""Folders of shards: read by number, and refused if images are missing or repeated."""

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from gms_fast import data, shards
from gms_fast.storage import arrays

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 5)).astype(np.uint8)
ORDER = np.random.default_rng(1).permutation(60)


def write(folder, parts, pixels=PIXELS):
    """Write a shard for each list of numbers, with text beside the arrays."""
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(parts):
        numbers = np.asarray(part, np.int64)
        np.savez(folder / f"{i:03}.npz", images=pixels[numbers % len(pixels)], index=numbers, settings="some text")
    return folder


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = write(tmp_path / "s", np.split(ORDER, [7, 30]))
    np.savez(tmp_path / "all.npz", images=PIXELS)
    assert torch.equal(data.load(folder), data.load(tmp_path / "all.npz"))
    assert shards.count(folder) == 60


@pytest.mark.parametrize("size", [1, 9, 100])
def test_stream_gives_bytes_and_numbers_a_few_at_a_time(tmp_path, size):
    found = data.stream(write(tmp_path / "s", np.split(ORDER, [7, 30])), size)
    assert found.count == 60
    for _ in range(2):  # iteration can start again
        parts = list(found)
        assert max(len(images) for images, _ in parts) == min(size, 30)
        assert all(images.dtype == torch.uint8 for images, _ in parts)
        images, index = (torch.cat(some) for some in zip(*parts, strict=True))
        assert torch.equal(index, torch.from_numpy(ORDER))
        assert torch.equal(images, torch.from_numpy(PIXELS)[index])


def test_shards_in_folders_of_the_folder_count(tmp_path):
    for rank in range(2):
        write(tmp_path / f"rank{rank}", [range(30 * rank, 30 * rank + 30)])
    assert data.stream(tmp_path).count == 60


def test_two_shards_are_in_memory_at_most(tmp_path, monkeypatch):
    """Memory holds the shard just read and the one before, whose parts the caller may hold."""
    folder, alive, most = write(tmp_path / "s", ORDER.reshape(10, 6)), [], []
    read = arrays.read_npz

    def counted(path, choose):
        found = read(path, choose)
        gc.collect()
        most.append(sum(r() is not None for r in alive))
        alive.extend(weakref.ref(array) for name, array in found.items() if name == "images")
        return found

    monkeypatch.setattr(arrays, "read_npz", counted)
    for images, index in data.stream(folder, 4):
        assert len(images) == len(index) <= 4
    assert len(alive) == 10
    assert max(most) <= 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([range(10), range(11, 20)], "must hold every image: 1 are missing, 10 the first"),
        ([range(3, 10), range(15, 20)], "must hold every image: 8 are missing, 0 the first"),
        ([range(10), range(9, 20)], r"must hold every image once: 9 is twice in 000.npz, 001.npz"),
        ([range(2, 10), range(2), range(20, 30), range(4, 6)], r"once: 4 is twice in 000.npz, 003.npz"),
        ([[0, 3, 5, 9], [1, 2, 8], [4, 5]], r"once: 5 is twice in 000.npz, 002.npz"),
        ([[9, 0, 3], [7, 1]], "must hold every image: 5 are missing, 2 the first"),
        ([[0, 1, 1]], "must hold every image once: 1 is twice in 000.npz"),
        ([[0, -1]], r"shard .*000.npz cannot be read: its index must be \(n,\) int64, 0 or more"),
    ],
)
def test_missing_and_double_pictures_are_refused_before_any_is_read(tmp_path, parts, message):
    folder = write(tmp_path / "s", parts)
    for read in (data.load, data.stream):
        with pytest.raises(ValueError, match=message):
            read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": None}, r"shard .*x.npz cannot be read: it holds \['images'\], wanted index"),
        ({"images": None}, r"shard .*x.npz cannot be read: it holds \['index'\], wanted images"),
        ({"images": PIXELS[:2]}, r"shard .*x.npz cannot be read: it holds 2 images, but 4 numbers"),
        (
            {"images": PIXELS[:4] / 255},
            r"shard .*x.npz cannot be read: its images must be \(n, C, H, W\) uint8: got float64",
        ),
        (
            {"images": PIXELS[:4, 0]},
            r"shard .*x.npz cannot be read: its images must be \(n, C, H, W\) uint8: got uint8 \(4",
        ),
        ({"images": np.array(["text"])}, r"shard .*x.npz cannot be read: it holds text, wanted numbers"),
        ({"index": np.arange(4.0)}, r"shard .*x.npz cannot be read: its index must be \(n,\) int64"),
        ({"index": np.arange(4)[None]}, r"shard .*x.npz cannot be read: its index must be \(n,\) int64"),
    ],
)
def test_files_that_are_no_shards_are_refused_by_name(tmp_path, change, message):
    content = {"images": PIXELS[:4], "index": np.arange(4)} | change
    np.savez(tmp_path / "x.npz", **{name: value for name, value in content.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        list(data.stream(tmp_path))


def test_shards_that_do_not_fit_together_are_refused(tmp_path):
    folder = write(tmp_path / "s", [range(10)])
    np.savez(folder / "y.npz", images=PIXELS[:2, :, :3], index=np.arange(10, 12))
    with pytest.raises(ValueError, match=r"y.npz holds images \(3, 3, 5\), but 000.npz \(3, 4, 5\): one shape"):
        list(data.stream(folder))
    (folder / "y.npz").write_bytes((folder / "000.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"shard .*y.npz cannot be read"):
        data.stream(folder)


def test_shards_and_pictures_in_one_folder_are_refused(tmp_path):
    folder = write(tmp_path / "s", [range(10)])
    (folder / "seen").mkdir()
    Image.fromarray(PIXELS[0, 0]).save(folder / "seen" / "a.png")
    for read in (data.load, data.stream):
        with pytest.raises(ValueError, match=r"must hold shards or images: got 000\.npz and a\.png"):
            read(folder)


def test_hidden_files_and_folders_are_no_shards(tmp_path):
    """A killed writer leaves such files."""
    folder = write(tmp_path / "s", [range(10)])
    write(folder / ".000.0123abcd.partial", [range(10)])
    (folder / ".001.npz").touch()
    Image.fromarray(PIXELS[0, 0]).save(folder / ".000.0123abcd.partial" / "a.png")
    assert [file.name for file in shards.files(folder)] == ["000.npz"]
    assert len(data.load(folder)) == data.stream(folder).count == 10


def test_numbers_of_many_pictures_are_known_by_few(tmp_path):
    folder = write(tmp_path / "s", [range(1000, 3000), range(1000), [3001, 3000, 3003, 3002, 3005]])
    assert shards._numbers(folder / "000.npz").tolist() == [[1000, 2999]]
    assert shards._numbers(folder / "002.npz").tolist() == [[3000, 3003], [3005, 3005]]
