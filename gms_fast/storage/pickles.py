"""Reader of `torch.save` files that imports and calls nothing that a file names.

torch's own reader with `weights_only` allocates what a file asks for before it checks what the file has. It also does
not compare a tensor with the bytes of its storage. This module interprets the few pickle opcodes that state dicts need.
Anything else raises an error that names it.
"""

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from gms_fast.storage import arrays
from gms_fast.storage.reading import exactly, fill
from gms_fast.storage.schema import short

_MOST_OPCODES = 1_500_000  # one row of a training curve takes seven
_LONGEST = 16 << 20  # bytes of a pickle
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before torch 1.6
_ALIASED = 4  # largest ratio of tensor bytes to file bytes, and of values to opcodes
_LITTLE = 1 << 20  # bytes of tensors that are always allowed
_LEAST = 256  # bytes that the smallest tensor counts as
_COPIED = 1 << 20  # most pairs and characters that a pickle may have copied
_WANTED = "tensors, numbers, text, lists and mappings"
_LARGEST_KEY, _LONGEST_KEY = 1 << 20, 1000
_DEEPEST = 1000  # levels of nesting
_ODD_KEYS = 1000  # keys other than text and small integers: crafted ones make a mapping slow
_ODD_KEY = f"text of at most {_LONGEST_KEY} characters, a number, None or a short tuple of these"
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
_VALUES = {  # opcodes that push a constant or their argument
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda said: said),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), lambda said: said),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), lambda said: said),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
}


def read(path: Path) -> Any:
    """Read the value in a file of `torch.save`, its tensors on the CPU.

    Raises ValueError that says what is wrong with the file, without its name.
    """
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
            fill(member, target.numpy().data)
            member.read(1)  # reach the end, where zipfile compares the checksum

    storages = _Storages(size, bytes_of)
    found = _Machine(storages).run(io.BytesIO(archive.read(pickled[0])))
    storages.finish()
    return found


def _read_plain(file: BinaryIO, size: int) -> Any:
    """Read the format before torch 1.6.

    It is a sequence of pickles: magic number, protocol, machine, object, keys of the storages; then the storages.
    """
    later: dict[str, Tensor] = {}
    storages = _Storages(size, later.__setitem__)
    head = [_Machine(storages).run(file) for _ in range(2)]
    if head != [_MAGIC, _PROTOCOL]:
        raise ValueError("it is not a file of torch.save")
    computer = _Machine(storages).run(file)
    if not isinstance(computer, dict) or computer.get("little_endian") is not True:
        raise ValueError("its numbers are not of little-endian order")
    found = _Machine(storages).run(file)
    keys = _Machine(storages).run(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != later.keys():
        raise ValueError("its list of storages does not match its tensors")
    for key in keys:
        target = later.pop(key, None)
        if target is None:
            raise ValueError(f"storage {short(key)} is listed twice")
        count = int.from_bytes(exactly(file, 8), "little")
        if count != storages.counts[key]:
            raise ValueError(f"storage {short(key)} has {count} elements, wanted {storages.counts[key]}")
        fill(file, target.numpy().data)
    storages.finish()
    return found


class _Storages:
    """Storages of a file's tensors, each read once, together no larger than the file."""

    def __init__(self, size: int, read: Callable[[str, Tensor], None]) -> None:
        self.left, self.tensors_left, self.read = size, _ALIASED * size + _LITTLE, read
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.known: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def get(self, said: object) -> Tensor:
        """Return the flat storage of a persistent id."""
        parts = said if isinstance(said, tuple) and len(said) in (5, 6) else (None,) * 5
        form, kind, key, _, count, *rest = parts
        known = form == "storage" and rest in ([], [None])
        if not known or not isinstance(kind, _Storage) or not _is_name(key) or not _whole(count):
            raise ValueError(f"it refers to {short(said)}, wanted a storage of torch")
        dtype = kind.dtype
        if key not in self.known:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise ValueError(f"its storages have more bytes than the file: {short(key)} has {count} of {dtype}")
            flat = torch.empty(count * dtype.itemsize, dtype=torch.uint8, device="cpu")
            self.read(key, flat)
            self.known[key], self.counts[key] = flat.view(dtype), count
        if self.known[key].dtype != dtype or self.counts[key] != count:
            raise ValueError(f"storage {short(key)} has two dtypes or sizes")
        return self.known[key]

    def view(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        requires_grad: object = False,
        hooks: object = None,
        metadata: object = None,
    ) -> Tensor:
        """Return a tensor in a storage, a copy if it repeats elements.

        Raises ValueError if it reaches beyond the storage.
        """
        if (
            not (isinstance(storage, Tensor) and _whole(offset) and _all_whole(size) and _all_whole(stride))
            or not len(size) == len(stride) <= 64
        ):
            raise ValueError(f"it has a tensor of {short(size)}, {short(stride)} at {short(offset)}, wanted integers")
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else offset
        if last >= len(storage) + (count == 0):
            raise ValueError(f"it has a tensor of {short(size)} in a storage of {len(storage)} elements")
        self.tensors_left -= max(count * storage.itemsize, _LEAST)
        if self.tensors_left < 0:
            repeats = f", {short(size)} that repeats {len(storage)} elements" if count > len(storage) else ""
            raise ValueError(f"its tensors have more than {_ALIASED} times as many bytes as the file{repeats}")
        tensor = storage.as_strided(size, stride, offset)
        marks = _marks(metadata)
        if not marks and not any(n > 1 and s == 0 for n, s in zip(size, stride, strict=True)):
            return tensor
        copy = torch.empty(size, dtype=tensor.dtype, device="cpu")
        self.copies.append((copy, _marked(tensor, marks)))
        return copy

    def finish(self) -> None:
        """Fill the copies, once all storages are read."""
        for copy, source in self.copies:
            copy.copy_(source)

    def view_of_bytes(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        grad: object,
        hooks: object,
        *others: object,
    ) -> Tensor:
        """Return a tensor of a dtype for which torch has no storage class, such as uint16."""
        dtype, *metadata = others
        if not isinstance(storage, Tensor) or not isinstance(dtype, torch.dtype) or len(storage) % dtype.itemsize:
            raise ValueError(
                f"it has a tensor of {short(dtype)} in {short(storage)}, wanted a whole number of elements"
            )
        return self.view(storage.view(dtype), offset, size, stride, grad, hooks, *metadata)


def _marks(metadata: object) -> dict[str, bool]:
    """Check the marks "neg" and "conj", by which torch negates or conjugates what is stored."""
    marks = {} if metadata is None else metadata
    if not isinstance(marks, dict) or any(
        key not in ("neg", "conj") or mark is not True for key, mark in marks.items()
    ):
        raise ValueError(f"it has a tensor with {short(metadata)}, wanted no other marks than neg and conj")
    return marks


def _marked(tensor: Tensor, marks: dict[str, bool]) -> Tensor:
    """Return a view of a tensor with its marks applied."""
    tensor = tensor.conj() if "conj" in marks else tensor
    return torch._neg_view(tensor) if "neg" in marks else tensor


class _Storage:
    """Stand-in for a storage class of torch; it knows its dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Maker:
    """Stand-in for a function that a file may name, with the call made instead."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


_NAMED = {  # names that stand for values, not for functions
    **{f"{module} {name}": _Storage(dtype) for name, dtype in _STORAGES.items() for module in ("torch", "torch.cuda")},
    **{f"torch {name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "torch.storage UntypedStorage": _Storage(torch.uint8),
}


def _size(sizes: object = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, tuple):
        raise ValueError(f"it has the size {short(sizes)}, wanted a tuple")
    return sizes


def _device(kind: object, index: object = None) -> str:
    if not _is_name(kind) or not (index is None or _whole(index)):
        raise ValueError(f"it has the device {short(kind)}, {short(index)}, wanted a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _items(items: object = ()) -> list[Any]:
    """Return the members of a set as a list."""
    if not isinstance(items, list):
        raise ValueError(f"it has a set of {short(items)}, wanted a list")
    return items


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _all_whole(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(map(_whole, values))


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= _LONGEST_KEY


def _is_usual_key(key: object) -> bool:
    return _is_name(key) or (isinstance(key, int) and -_LARGEST_KEY < key < _LARGEST_KEY)


def _is_odd_key(key: object) -> bool:
    """Return True for a key that is hashed and compared in little time."""
    parts = key if isinstance(key, tuple) and len(key) <= 8 else (key,)
    return all(part is None or _is_name(part) or isinstance(part, (int, float)) for part in parts)


def _check_shared(value: object, most: int) -> None:
    """Raise ValueError for a value that holds itself or has more than `most` parts.

    Shared parts count each time they occur: a few of them, nested, would keep code busy that walks through the value or
    prints it.
    """
    counts: dict[int, int] = {}  # parts of a container by its id; 0 until they are counted
    todo, depth = [value], 0
    while todo:
        place = id(todo[-1])
        if counts.get(place, 0) > 0:  # it was on the list more than once
            todo.pop()
            continue
        inside = _parts(todo[-1])
        if place not in counts:
            counts[place] = 0
            depth += 1
            if depth > _DEEPEST:
                raise ValueError("it is nested too deeply")
            todo += (
                part for part in inside if isinstance(part, (list, tuple, dict)) and part and not _known(part, counts)
            )
            continue
        count = 1 + sum(counts.get(id(part), 1) for part in inside)
        if count > most:
            raise ValueError(f"it has more than {most} values, shared ones counted each time")
        counts[place] = count
        depth -= 1
        todo.pop()


def _known(part: object, counts: dict[int, int]) -> bool:
    if counts.get(id(part)) == 0:
        raise ValueError("it has a list or mapping that holds itself")
    return id(part) in counts


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


class _Machine:
    """Interpreter of one pickle, with its stack and memo."""

    def __init__(self, storages: _Storages) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.odd_keys, self.copied = 0, 0
        makers: dict[str, Callable[..., Any]] = {
            "torch._utils _rebuild_tensor": storages.view,
            "torch._utils _rebuild_tensor_v2": storages.view,
            "torch._utils _rebuild_tensor_v3": storages.view_of_bytes,
            "torch._utils _rebuild_parameter": lambda data, *_: data,
            "torch._utils _rebuild_parameter_with_state": lambda data, *_: data,
            "collections OrderedDict": self._mapping,
            "collections Counter": self._mapping,
            "torch Size": _size,
            "torch device": _device,
            "__builtin__ set": _items,
            "__builtin__ frozenset": _items,
            "_codecs encode": self._encoded,
        }
        self.makers = {name: _Maker(make) for name, make in makers.items()}

    def run(self, file: BinaryIO) -> Any:
        """Return the value of a pickle; the file is then positioned behind it."""
        for count, (opcode, said, _) in enumerate(pickletools.genops(file)):
            if count == _MOST_OPCODES:
                raise ValueError(f"its pickle has more than {_MOST_OPCODES} opcodes")
            if opcode.name in _VALUES:
                self.stack.append(_VALUES[opcode.name](said))
            elif opcode.name == "STOP":
                value = self._take()
                _check_shared(value, _ALIASED * count + _ODD_KEYS)
                return value
            else:
                step = getattr(self, f"_{opcode.name.lower()}", None)
                if step is None:
                    raise ValueError(f"its pickle has the opcode {opcode.name}, wanted only {_WANTED}")
                step(said)
        raise ValueError("its pickle ends without STOP")

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
            raise ValueError("its pickle appends to something that is not a list")
        self.stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self._take(), self._take()
        self._update([key, value])

    def _setitems(self, _: None) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict):
            raise ValueError("its pickle sets items of something that is not a mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(target, key, value)

    def _put(self, target: dict[Any, Any], key: object, value: object) -> None:
        """Set an item of a mapping; refuse many keys that are slow to hash or compare."""
        if not _is_usual_key(key):
            self.odd_keys += 1
            if not _is_odd_key(key):
                raise ValueError(f"it has the key {short(key)}, wanted {_ODD_KEY}")
            if self.odd_keys > _ODD_KEYS:
                raise ValueError(
                    f"it has {short(key)} and {_ODD_KEYS} more keys that are neither text nor small integers"
                )
        target[key] = value

    def _mapping(self, items: object = ()) -> dict[Any, Any]:
        """Make a mapping of a mapping, or of a list of pairs."""
        if isinstance(items, dict):
            return items
        found: dict[Any, Any] = {}
        for pair in _parts(items):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise ValueError(f"it has a mapping of {short(pair)}, wanted pairs")
            self._copy(1)
            self._put(found, *pair)
        return found

    def _encoded(self, text: object, encoding: object) -> bytes:
        """Return bytes, which torch writes as text of equally many characters."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError(f"it has {short(text)} in {short(encoding)}, wanted bytes as text in latin1")
        self._copy(len(text))
        return text.encode("latin1")

    def _copy(self, size: int) -> None:
        self.copied += size
        if self.copied > _COPIED:
            raise ValueError(f"it has more than {_COPIED} bytes, or pairs of mappings, beside its tensors")

    def _global(self, name: str) -> None:
        found = _NAMED.get(name) or self.makers.get(name)
        if found is None:
            raise ValueError(f"it holds {short(name.replace(' ', '.'))}, wanted only {_WANTED}")
        self.stack.append(found)

    def _binpersid(self, _: None) -> None:
        self.stack.append(self.storages.get(self._take()))

    def _reduce(self, _: None) -> None:
        arguments, maker = self._take(), self._take()
        if not isinstance(maker, _Maker) or not isinstance(arguments, tuple):
            raise ValueError(f"its pickle calls {short(maker)}, wanted only {_WANTED}")
        self.stack.append(maker.make(*arguments))

    def _build(self, _: None) -> None:
        """Ignore attributes of a mapping or a tensor, such as the versions of a state dict."""
        self._take()
        if not self.stack or not isinstance(self.stack[-1], (dict, Tensor)):
            raise ValueError("its pickle sets attributes of a value that has none")
