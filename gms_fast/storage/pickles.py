"""What `torch.save` writes, read without unpickling: nothing that a file names is imported or called.

torch's own reader with `weights_only` allocates what a file asks for before it looks at what there is, and does not
compare a tensor with the bytes it lies in. Here the few opcodes that state dicts need are walked through one by one;
everything else is refused by name.
"""

import io
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gms_fast.schema import short
from gms_fast.storage import arrays
from gms_fast.storage.reading import exactly, fill

_MOST_OPCODES = 500_000
_LONGEST = 64 << 20  # bytes of a pickle
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch before 1.6
_ALIASED = 4  # times as many bytes may its tensors have as the file
_WANTED = "tensors, numbers, text, lists and mappings"
_LARGEST_KEY = 1 << 20
_MARK = object()

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_VALUES = {  # opcodes that push what they say
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda said: said),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), lambda said: said),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
}


def read(path: Path) -> Any:
    """What a file of `torch.save` holds, its tensors on the CPU. Raises ValueError saying what is wrong with it."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if exactly(file, 4)[:2] != b"PK":
            file.seek(0)
            return _read_plain(file, size)
    with arrays.members(path) as archive:
        return _read_zip(archive, size)


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    pickled = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickled) != 1:
        raise ValueError(f"it is a zip file with {len(pickled)} members data.pkl, wanted one, as torch.save writes it")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("its members are compressed, wanted them as torch.save writes them")
    if pickled[0].file_size > _LONGEST:
        raise ValueError(f"its data.pkl has {pickled[0].file_size} bytes, wanted at most {_LONGEST}")
    folder = pickled[0].filename.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are not of little-endian order")

    def bytes_of(key: str, target: Tensor) -> None:
        info = archive.getinfo(f"{folder}data/{key}")
        if info.file_size != target.nbytes:
            raise ValueError(f"storage {short(key)} has {info.file_size} bytes, wanted {target.nbytes}")
        with archive.open(info) as member:
            fill(member, memoryview(target.numpy()))
            member.read(1)  # to the end, where its checksum is compared

    return _Machine(_Storages(size, bytes_of)).run(io.BytesIO(archive.read(pickled[0])))


def _read_plain(file: BinaryIO, size: int) -> Any:
    """The form before torch 1.6: magic number, protocol, machine, object, keys of the storages, storages."""
    later: dict[str, Tensor] = {}
    storages = _Storages(size, later.__setitem__)
    head = [_Machine(storages).run(file) for _ in range(2)]
    if head != [_MAGIC, _PROTOCOL]:
        raise ValueError("it is no file of torch.save")
    computer = _Machine(storages).run(file)
    if not isinstance(computer, dict) or computer.get("little_endian") is not True:
        raise ValueError("its numbers are not of little-endian order")
    found = _Machine(storages).run(file)
    keys = _Machine(storages).run(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != later.keys():
        raise ValueError("its list of storages is not that of its tensors")
    for key in keys:
        target = later.pop(key, None)
        if target is None:
            raise ValueError(f"storage {short(key)} is listed twice")
        count = int.from_bytes(exactly(file, 8), "little")
        if count != storages.counts[key]:
            raise ValueError(f"storage {short(key)} has {count} elements, wanted {storages.counts[key]}")
        fill(file, memoryview(target.numpy()))
    return found


class _Storages:
    """The bytes that tensors lie in, each storage read once; together no more than the file has."""

    def __init__(self, size: int, read: Callable[[str, Tensor], None]) -> None:
        self.left, self.tensors_left, self.read = size, _ALIASED * size, read
        self.known: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def get(self, said: object) -> Tensor:
        """The storage of a persistent id, flat."""
        form = isinstance(said, tuple) and len(said) in (5, 6) and said[0] == "storage" and said[5:] in ((), (None,))
        if not form or not isinstance(said[1], _Storage) or not isinstance(said[2], str) or not _whole(said[4]):
            raise ValueError(f"it refers to {short(said)}, wanted a storage of torch")
        dtype, key, count = said[1].dtype, said[2], said[4]
        if key not in self.known:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise ValueError(f"its storages have more bytes than the file: {short(key)} has {count} of {dtype}")
            flat = torch.empty(count * dtype.itemsize, dtype=torch.uint8, device="cpu")
            self.read(key, flat)
            self.known[key], self.counts[key] = flat.view(dtype), count
        if self.known[key].dtype != dtype or self.counts[key] != count:
            raise ValueError(f"storage {short(key)} is of two kinds or sizes")
        return self.known[key]

    def view(self, storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
        """A tensor in a storage. Raises ValueError for one that leaves it or is larger."""
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        if not isinstance(storage, Tensor) or not all(map(_whole, numbers)) or not len(size) == len(stride) <= 64:
            raise ValueError(f"it has a tensor of {short(size)}, {short(stride)} at {short(offset)}, wanted integers")
        count = 1
        for n in size:
            count *= n
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else offset
        if count > len(storage) or last >= len(storage) + (count == 0):
            raise ValueError(f"it has a tensor of {short(size)} in a storage of {len(storage)} elements")
        self.tensors_left -= count * storage.itemsize
        if self.tensors_left < 0:
            raise ValueError(f"its tensors have more than {_ALIASED} times as many bytes as the file")
        return storage.as_strided(size, stride, offset)


class _Storage:
    """A class of storages, by its dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Maker:
    """A function that a file may name, and what is done instead."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


def _stand_in(name: str, storages: _Storages) -> _Storage | _Maker:
    """What stands for a global. Raises ValueError naming one that has no place in a state dict."""
    module, _, last = name.rpartition(" ")
    if module in ("torch", "torch.cuda") and last in _STORAGES:
        return _Storage(_STORAGES[last])
    make = {
        "torch._utils _rebuild_tensor": storages.view,
        "torch._utils _rebuild_tensor_v2": storages.view,
        "torch._utils _rebuild_parameter": lambda data, *_: data,
        "torch._utils _rebuild_parameter_with_state": lambda data, *_: data,
        "collections OrderedDict": _ordered,
        "collections Counter": _ordered,
        "torch Size": lambda sizes=(): tuple(sizes),
        "torch device": lambda *said: ":".join(map(str, said)),
    }.get(name)
    if make is None:
        raise ValueError(f"it holds {short(name.replace(' ', '.'))}, wanted {_WANTED} alone")
    return _Maker(make)


def _ordered(pairs: object = ()) -> dict:
    found: dict = {}
    for key, value in pairs:  # type: ignore[attr-defined]
        _put(found, key, value)
    return found


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _put(target: object, key: object, value: object) -> None:
    """An entry of a mapping. Keys of which many can be made that a mapping takes long to tell apart are refused."""
    if not isinstance(target, dict) or not (isinstance(key, str) or (_whole(key) and key < _LARGEST_KEY)):
        raise ValueError(f"it has the key {short(key)}, wanted text or an integer from 0 to {_LARGEST_KEY - 1}")
    target[key] = value


class _Machine:
    """The stack and the memory of one pickle."""

    def __init__(self, storages: _Storages) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """The value that a pickle makes; the file is left behind it."""
        for count, (opcode, said, _) in enumerate(pickletools.genops(file)):
            if count == _MOST_OPCODES:
                raise ValueError(f"its pickle has more than {_MOST_OPCODES} opcodes")
            if opcode.name in _VALUES:
                self.stack.append(_VALUES[opcode.name](said))
            elif opcode.name == "STOP":
                return self._take()
            else:
                step = getattr(self, f"_{opcode.name.lower()}", None)
                if step is None:
                    raise ValueError(f"its pickle has the opcode {opcode.name}, wanted {_WANTED} alone")
                step(said)
        raise ValueError("its pickle has no end")

    def _take(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("its pickle takes more than it has")
        return self.stack.pop()

    def _since_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise ValueError("its pickle takes more than it has")
        self.stack.pop()
        return items[::-1]

    def _proto(self, said: int) -> None:
        pass

    def _mark(self, _: None) -> None:
        self.stack.append(_MARK)

    def _binput(self, place: int) -> None:
        self.memory[place] = self.stack[-1] if self.stack else None

    _long_binput = _binput

    def _binget(self, place: int) -> None:
        if place not in self.memory:
            raise ValueError(f"its pickle asks for memory {place}, which is empty")
        self.stack.append(self.memory[place])

    _long_binget = _binget

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: None) -> None:
        self.stack.append((self._take(),))

    def _tuple2(self, _: None) -> None:
        second, first = self._take(), self._take()
        self.stack.append((first, second))

    def _tuple3(self, _: None) -> None:
        third, second, first = self._take(), self._take(), self._take()
        self.stack.append((first, second, third))

    def _append(self, _: None) -> None:
        self._extend([self._take()])

    def _appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if not self.stack or not isinstance(self.stack[-1], list):
            raise ValueError("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self._take(), self._take()
        self._update([key, value])

    def _setitems(self, _: None) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(target, key, value)

    def _global(self, name: str) -> None:
        self.stack.append(_stand_in(name, self.storages))

    def _binpersid(self, _: None) -> None:
        self.stack.append(self.storages.get(self._take()))

    def _reduce(self, _: None) -> None:
        arguments, maker = self._take(), self._take()
        if not isinstance(maker, _Maker) or not isinstance(arguments, tuple):
            raise ValueError(f"its pickle calls {short(maker)}, wanted {_WANTED} alone")
        self.stack.append(maker.make(*arguments))

    def _build(self, _: None) -> None:
        """Attributes of a mapping or a tensor, such as the versions of a state dict, are left out."""
        self._take()
        if not self.stack or not isinstance(self.stack[-1], (dict, Tensor)):
            raise ValueError("its pickle sets attributes of what has none")
