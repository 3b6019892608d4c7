"""Feature networks: built in, by import path, or in a file of TorchScript or `torch.export`.

A foreign network is a program: load only what you trust. An import path runs a module, a TorchScript file runs its own
code, and torch may unpickle parts of an exported one. Other files are refused unread.
"""

import copy
import functools
import importlib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gms_fast.images import as_bytes
from gms_fast.quality import classifier
from gms_fast.storage import fingerprints
from gms_fast.storage.reading import reason, refusing
from gms_fast.storage.schema import Choice, Optional, argument, short

INPUTS = ("[-1,1]", "[0,1]", "uint8")
PIXELS = "pixels"
_WANTED = f"{PIXELS}, {', '.join(classifier.SHAPES)}, package.module:attribute or a TorchScript or torch.export file"

_ASK = "return_features"  # with it the Inception of StyleGAN and EDM returns features instead of classes

Place = Callable[[torch.device], Callable[[Tensor], Any]]


class Extractor:
    """Callable from images (B, C, H, W), uint8 or float in [-1, 1], to features (B, D) float32.

    Args:
        name: Name of the results.
        mark: Identity of these features: kind and fingerprint of the weights. Input and channels are added to it.
        place: Puts the network on a device.
        input: Input range of the network: "[-1,1]", "[0,1]", or "uint8" for 0 .. 255.
        channels: 3 repeats grey images to three channels; None leaves them as they are.
    """

    def __init__(self, name: str, mark: str, place: Place, input: str = INPUTS[0], channels: int | None = None) -> None:
        self.name, self.input, self.channels, self._place = name, input, channels, place
        self.mark = ", ".join([mark, *([] if input == INPUTS[0] else [input]), *(["3 channels"] if channels else [])])
        self.to("cpu")

    def to(self, device: torch.device | str) -> "Extractor":
        """Move the network to a device; return the extractor itself."""
        self.device = torch.device(device)
        self.network = self._place(self.device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Raises ValueError for images that the network refuses, and for an output that is not (B, D) or (B, D, 1, 1).
        """
        given = self._given(images)
        try:
            output = self.network(given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            got = f"images {tuple(given.shape)} of {given.dtype}"
            raise ValueError(f"features {self.name} do not take {got}: {reason(error)}") from error
        return self._features(output, len(images))

    def _given(self, images: Tensor) -> Tensor:
        """Convert images to the network's input."""
        if not isinstance(images, Tensor) or images.ndim != 4 or not (images.is_floating_point() or _bytes(images)):
            raise ValueError(f"images must be (B, C, H, W), uint8 or floats in [-1, 1]: got {short(images)}")
        if self.input == "uint8":
            x = (images if _bytes(images) else as_bytes(images)).to(self.device)
        else:
            x = images.to(self.device).float()
            x = x / 127.5 - 1 if _bytes(images) else x
            x = (x + 1) / 2 if self.input == "[0,1]" else x
        return x.expand(-1, 3, -1, -1) if self.channels == 3 and x.shape[1] == 1 else x

    def _features(self, output: object, count: int) -> Tensor:
        """Check the network's output and return its rows."""
        alone = output[0] if isinstance(output, (list, tuple)) and len(output) == 1 else output
        if isinstance(alone, Tensor) and alone.is_floating_point() and alone.shape[:1] == (count,):
            if alone.ndim == 4 and alone.shape[2:] == (1, 1):
                alone = alone.flatten(1)
            if alone.ndim == 2:
                return alone.float()
        wanted = f"one tensor ({count}, D) or ({count}, D, 1, 1) of floats"
        raise ValueError(f"features {self.name} must give {wanted}: got {short(output)}")


def load(
    text: str | Path, *, input: str | None = None, channels: int | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """Load the feature network that a text describes.

    Features are computed in float32 and eval mode.

    Args:
        text: One of
            "pixels";
            "mnist5k", "digits" or "cifar10": classifiers of `quality.classifier`;
            "package.module:attribute": a torch module, or a class or function that makes one without arguments;
            a TorchScript file: called with `return_features` if it has that argument, as StyleGAN's Inception does;
            a file of `torch.export.save` that takes batches of any size.
            The module's docstring says which of these run foreign code.
        input: Input range of your network: "[-1,1]" (default), "[0,1]" or "uint8". The Inception files of StyleGAN and
            EDM take "uint8". It cannot be detected, and a wrong one gives wrong features without an error.
        channels: 3 repeats grey images for a network of three channels; None leaves them as they are.
        device: Device of the network.

    Raises ValueError for anything that cannot be loaded, and for input or channels given with a built-in network.
    """
    built_in = text == PIXELS or text in classifier.SHAPES  # a Path is never a name
    text = str(text)
    argument("input", input, Optional(Choice(INPUTS)))
    argument("channels", channels, Optional(Choice((3,))))
    if built_in:
        if input is not None or channels is not None:
            raise ValueError(f"input and channels must not be given with {text}, whose input is known")
        return _built_in(text).to(device)
    path = Path(text)
    if not path.is_file() and ":" not in text:
        raise ValueError(f"features must be {_WANTED}: got {short(text)}")
    name, make = (path.stem, _of_file) if path.is_file() else (text, _imported)
    with refusing(f"features {text} cannot be loaded", text):
        place, mark = make(text)
    return Extractor(name, mark, place, input or INPUTS[0], channels).to(device)


def _built_in(text: str) -> Extractor:
    if text == PIXELS:
        return Extractor(text, text, lambda _: lambda images: images.flatten(1))
    network = classifier.load(text)

    def place(device: torch.device) -> Callable[[Tensor], Tensor]:
        return network.to(device).features

    return Extractor(text, _mark(text, network), place)


def _imported(text: str) -> tuple[Place, str]:
    """Import a network; return its placer and its mark."""
    module, _, attribute = text.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    network = copy.deepcopy(found) if isinstance(found, nn.Module) else found()
    if not callable(network):
        raise ValueError(f"it is {short(network)}, wanted a torch module")
    if not isinstance(network, nn.Module):
        return lambda _: network, text
    return network.float().eval().to, _mark(text, network)


def _of_file(text: str) -> tuple[Place, str]:
    """Load a network from a file; return its placer and its mark."""
    path = Path(text)
    scripted = _is_script(path)
    mark = f"{'TorchScript' if scripted else 'torch.export'} {fingerprints.of_files({'': path})}"
    return _scripted(path) if scripted else _exported(path), mark


def _scripted(path: Path) -> Place:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch prefers exported programs to TorchScript
        network = torch.jit.load(path, map_location="cpu").eval()
    if all(argument.name != _ASK for argument in network.forward.schema.arguments):
        return network.to
    return lambda device: functools.partial(network.to(device), **{_ASK: True})


def _exported(path: Path) -> Place:
    from torch.export.passes import move_to_device_pass  # slow import, needed for such files only

    program = torch.export.load(path)

    def place(device: torch.device) -> Callable[[Tensor], Any]:
        return move_to_device_pass(program, device).module()

    return place


def _is_script(path: Path) -> bool:
    """Return True for TorchScript, False for an exported program.

    Raises ValueError for every other file.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a file of TorchScript or torch.export")
    with zipfile.ZipFile(path) as archive:
        inside = {name.partition("/")[2] for name in archive.namelist()} | set(archive.namelist())
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return True
    if not inside & {"archive_format", "serialized_exported_program.json"}:
        alone = "it holds weights without their network: give the network as package.module:attribute"
        raise ValueError(alone if "data.pkl" in inside else "it is not a file of TorchScript or torch.export")
    return False


def _mark(text: str, network: nn.Module) -> str:
    """Return a text with the fingerprint of all weights and buffers."""
    state = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    return f"{text} {fingerprints.of_named(state)}"


def _bytes(images: Tensor) -> bool:
    return images.dtype == torch.uint8
