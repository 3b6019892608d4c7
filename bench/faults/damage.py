"""Test every loader with damaged and malicious files.

    python -m bench.faults.damage                        10,000 cases, counts by kind; exit status 1 if any fails
    python -m bench.faults.damage --first 417 --count 1  one of them again

A loader must either raise a ValueError that names the file or return valid content. Each file may take at most 512 MiB
of memory and 5 seconds.

A case is a function of seed and number (and, in checkpoints before torch 1.6, of addresses that torch writes).
"""

import argparse
import builtins
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.faults import damage_files

MEMORY, SECONDS = 512 << 20, 5.0
LONGEST = 4000  # characters of a message
ADDRESSES = 8 << 30  # bytes of virtual memory for the process, to protect the machine
_ROOT = Path(tempfile.mkdtemp(prefix="damage-"))
_MARKER = _ROOT / "ran"  # appears when a payload runs
NASTY = [
    *(0, -1, 1, 2, 3, 7, 255, 10**6, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, -(10**12)),
    *(0.5, 1e12, -1e-30, 1e308, 1.0, float("nan"), float("inf"), float("-inf")),
    *(None, True, False, "", "x", "..", "../../x", "9" * 5000, "\ud800", [], [1], {}, {"x": 1}, [[]], [None] * 1000),
]


class Payload:
    """Object that runs something when it is unpickled."""

    def __init__(self, way: int) -> None:
        self.way = way

    def __reduce__(self) -> tuple:
        touch = f"open({str(_MARKER)!r}, 'w').close()"
        return [
            (os.system, (f"touch {_MARKER}",)),
            (builtins.eval, (touch,)),
            (builtins.exec, (touch,)),
            (open, (str(_MARKER), "w")),
            (os.mkdir, (str(_MARKER),)),
        ][self.way % 5]


class _Stored:
    """Storage reference of a torch file, whose size may be false."""

    def __init__(self, key: str, count: object, kind: type = torch.FloatStorage) -> None:
        self.said = ("storage", kind, key, "cpu", count)


class _Viewed:
    """Tensor of a torch file, whose sizes may be false."""

    def __init__(self, stored: object, offset: object, size: object, stride: object) -> None:
        self.arguments = (stored, offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple:
        return torch._utils._rebuild_tensor_v2, self.arguments


def _torch_file(value: Any, contents: dict[str, bytes]) -> bytes:
    """Return a torch zip file with these records and correct checksums."""
    text = io.BytesIO()
    pickler = pickle.Pickler(text, protocol=2)
    pickler.persistent_id = lambda item: item.said if isinstance(item, _Stored) else None
    pickler.dump(value)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", text.getvalue())
        archive.writestr("archive/version", "3")
        for key, data in contents.items():
            archive.writestr(f"archive/data/{key}", data)
    return packed.getvalue()


# --- damages: functions (bytes, random state) -> bytes ---

Damage = Callable[[bytes, random.Random], bytes]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice([0, 1, rng.randrange(len(data)), len(data) - 1, len(data) - rng.randrange(1, 30)])]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spliced(data: bytes, rng: random.Random) -> bytes:
    at, gone = _place(data, rng), rng.choice([0, 0, 1, 8, 100])
    return data[:at] + rng.randbytes(rng.choice([1, 2, 8, 100, 4096])) + data[at + gone :]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    at, size = _place(data, rng), rng.choice([1, 4, 16, 512, 4096])
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def doubled(data: bytes, rng: random.Random) -> bytes:
    at, size = _place(data, rng), rng.choice([1, 16, 512, 4096, len(data)])
    return data[: at + size] + data[at : at + size] + data[at + size :]


def exchanged(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice([1, 16, 512])
    a, b = sorted((_place(data, rng), _place(data, rng)))
    if b < a + size:
        return data[::-1]
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def measured(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a number of 1, 2, 4 or 8 bytes, such as a length."""
    width = rng.choice([1, 2, 4, 8])
    at = rng.choice([0, 0, _place(data, rng), len(data) - rng.randrange(1, 60)]) % len(data)
    number = rng.choice([0, 1, 255, 65535, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    return data[:at] + (number % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def _place(data: bytes, rng: random.Random) -> int:
    """Choose a position, often near one of the ends, where headers are."""
    near = rng.randrange(min(len(data), 400))
    return rng.choice([near, len(data) - 1 - near, rng.randrange(len(data))])


def replaced(data: bytes, rng: random.Random) -> bytes:
    """Return a pickle that runs something, in each format that such a file might be read as."""
    payload, legacy = Payload(rng.randrange(5)), io.BytesIO()
    torch.save(payload, legacy, _use_new_zipfile_serialization=False)
    return rng.choice(
        [
            pickle.dumps(payload, protocol=rng.randrange(6)),
            _torch_file(payload, {}),
            legacy.getvalue(),
            _npy_of_objects(payload),
            _zipped({"images.npy": _npy_of_objects(payload), "x.npy": _npy_of_objects(payload)}),
            json.dumps({"__reduce__": ["os.system", f"touch {_MARKER}"]}).encode(),
        ]
    )


def _npy_of_objects(value: object) -> bytes:
    text = io.BytesIO()
    np.lib.format.write_array(text, np.array([value], dtype=object), allow_pickle=True)
    return text.getvalue()


def _zipped(members: dict[str, bytes]) -> bytes:
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return text.getvalue()


def misdescribed(data: bytes, rng: random.Random) -> bytes:
    """Change a value, key or nesting of JSON text, or of the header of a safetensors file."""
    if data[:1] in b"{[" and not data.startswith(b"\x93"):
        if data.count(b"\n{") and data.startswith(b'{"model"'):  # JSON lines
            lines = data.splitlines()
            i = rng.randrange(len(lines))
            return b"\n".join([*lines[:i], _mutated(lines[i], rng), *lines[i + 1 :]]) + b"\n"
        return _mutated(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    inside = header.get("__metadata__", {})
    keys = [key for key in inside if key not in ("format", "gms_fast.sha256", "measurement")]  # these are not JSON
    if keys and rng.random() < 0.7:
        key = rng.choice(keys)
        inside[key] = _mutated(inside[key].encode(), rng).decode("utf-8", "surrogateescape")
        text = json.dumps(header).encode()
    else:
        text = _mutated(data[8 : 8 + length], rng)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _mutated(text: bytes, rng: random.Random) -> bytes:
    value = json.loads(text)
    places = list(_places(value))
    if not places or rng.random() < 0.1:
        deep = rng.choice([50, 1000, 100_000])
        return rng.choice([b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"NaN", b"", b"\xff\xfe"])
    owner, key = rng.choice(places)
    way = rng.randrange(8)
    if way == 0:
        del owner[key]
    elif way == 1 and isinstance(owner, dict):
        owner[str(key) + "x"] = owner.pop(key)
    elif way == 2 and isinstance(owner, dict):
        return json.dumps(value).encode().replace(f'"{key}":'.encode(), f'"{key}": 1, "{key}":'.encode(), 1)
    elif way == 3:
        owner[key] = "@"
        nested = rng.choice(["[" * 100_000 + "]" * 100_000, "9" * 5000, "1e999", "-", '"\\ud800"', "NaN"])
        return json.dumps(value).replace('"@"', nested, 1).encode()
    else:
        owner[key] = rng.choice(NASTY)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: object) -> Iterator[tuple[Any, Any]]:
    """Yield (list or mapping, index or key) of everything nested in a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inside):
        yield value, key
        yield from _places(item)


def reshaped(data: bytes, rng: random.Random) -> bytes:
    """Change the shape or type in an array's header; a zip file keeps correct checksums."""
    if not data.startswith(b"PK"):
        return _misshapen(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    return _zipped(members | {name: _misshapen(members[name], rng)})


def _misshapen(data: bytes, rng: random.Random) -> bytes:
    text = io.BytesIO(data)
    np.lib.format.read_magic(text)
    shape, order, dtype = np.lib.format.read_array_header_1_0(text)
    other = [*shape, 1]
    other[rng.randrange(len(other))] = rng.choice([0, -1, 1, 10**6, 10**12, 1 << 62, 1 << 64, 10**30])
    descr = rng.choice([dtype.str, dtype.str, "<f8", "<c16", "|O", "<U9", "|V100000000", "<M8[s]", "<i4", ">f4", "|b1"])
    header = {"descr": descr, "fortran_order": rng.random() < 0.3 or order, "shape": tuple(other)}
    if rng.random() < 0.2:
        said = rng.choice(["(" * 3000, "{}", "[" + "1," * 3000 + "]", "9" * 9000, "__import__('os')", str(header) * 2])
    else:
        said = str(header)
    said = said.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said + text.read()


@cache
def _zeros(mebibytes: int) -> bytes:
    """Return a zip file of zeros that unpacks to a thousand times its size."""
    text = io.BytesIO()
    packed = zipfile.ZipFile(text, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open("images.npy", "w", force_zip64=True) as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (mebibytes, 1024, 1024)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(mebibytes):
            member.write(bytes(1 << 20))
    return text.getvalue()


def bomb(data: bytes, rng: random.Random) -> bytes:
    """Return a zip file that unpacks to far more than its size, or claims to."""
    way = rng.randrange(3)
    if way == 0:
        return _zeros(rng.choice([48, 600]))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    if way == 1:
        return _zipped({name: bytes(1 << 20) for name in names[:50]})
    at = data.rfind(b"PK\x01\x02")  # the last member's sizes in the directory
    return data[: at + 20] + rng.choice([b"\xff\xff\xff\x7f", b"\x00\x00\x00\x10"]) * 2 + data[at + 28 :]


def pickled(data: bytes, rng: random.Random) -> bytes:
    """Put into a checkpoint an object that runs something, or one that takes memory or time."""
    value = torch.load(io.BytesIO(data), weights_only=True)
    evil = rng.choice(
        [Payload(rng.randrange(5)), bytearray(10), {1, 2}, 1j, torch.nn.Linear(1, 1), Path("x"), range(3)]
    )
    owner, key = rng.choice(list(_places(value)))
    if rng.random() < 0.3 and isinstance(owner, dict):
        owner[_Hashed(rng.randrange(5))] = owner.pop(key)
    elif rng.random() < 0.3:
        nested: Any = ()
        for _ in range(rng.choice([40, 900])):
            nested = (nested, nested)
        owner[key] = nested
    else:
        owner[key] = evil
    text = io.BytesIO()
    torch.save(value, text, _use_new_zipfile_serialization=data.startswith(b"PK"))
    return text.getvalue()


def shared(data: bytes, rng: random.Random) -> bytes:
    """Put into a checkpoint a few shared parts that multiply if each use is counted.

    They stand as a value, key or argument.
    """
    value = torch.load(io.BytesIO(data), weights_only=True)
    nested: Any = rng.choice([(), "x", 0, torch.zeros(2)])
    pair = rng.choice([lambda a: (a, a), lambda a: [a, a], lambda a: {"a": a, "b": a}])
    for _ in range(rng.choice([3, 15, 25, 25, 300])):
        nested = pair(nested)
    owner, key = rng.choice(list(_places(value)))
    calls = [torch.device, torch.Size, OrderedDict, Counter, set, torch._utils._rebuild_tensor]
    way = rng.randrange(5)
    if way == 0 and isinstance(owner, dict):
        owner[_Called(torch.Size, nested)] = owner.pop(key)
    elif way == 1:
        owner[key] = _Called(rng.choice(calls), nested)
    elif way == 2:
        owner[key] = {f"k{i}": nested for i in range(1000)}
    elif way == 3:
        owner[key] = [_Called(rng.choice(calls), [nested] * 1000)] * 1000
    else:
        owner[key] = nested
    text = io.BytesIO()
    torch.save(value, text, _use_new_zipfile_serialization=data.startswith(b"PK"))
    return text.getvalue()


class _Called:
    """Call of a function with one argument of any kind, made when it is unpickled."""

    def __init__(self, function: Callable, argument: Any) -> None:
        self.said = function, (argument,)

    def __reduce__(self) -> tuple:
        return self.said


class _Hashed(Payload):
    """Payload that stands in place of a key."""


def retyped(data: bytes, rng: random.Random) -> bytes:
    """Replace a value or tensor of a checkpoint by one of another type, with correct checksums."""
    value = torch.load(io.BytesIO(data), weights_only=True)
    owner, key = rng.choice(list(_places(value)))
    old = owner[key]
    tensors = [torch.zeros(2, 3), torch.tensor(float("nan")), torch.zeros(0), torch.zeros(1, dtype=torch.int64)]
    if isinstance(old, torch.Tensor):
        changed = old.flatten().clone()
        changed[:1] = float("nan")
        tensors += [old.to(torch.complex64), old.to(torch.int32), old.half(), old[None], changed.view(old.shape)]
        tensors += [old.flatten()[:1].expand(10**5)]
    owner[key] = rng.choice([*tensors, *NASTY, *tensors])
    if rng.random() < 0.1 and isinstance(owner, dict):
        owner.pop(key)
    text = io.BytesIO()
    torch.save(value, text, _use_new_zipfile_serialization=data.startswith(b"PK"))
    return text.getvalue()


def oversized(data: bytes, rng: random.Random) -> bytes:
    """Return a torch file whose tensors claim sizes that it does not have."""
    sizes = [0, 1, 4, 5, 10**6, 10**9, 1 << 40, 1 << 62, 1 << 70, -1, 1.5, None, True]
    count, kind = rng.choice(sizes), rng.choice([torch.FloatStorage, torch.ByteStorage, torch.ComplexDoubleStorage])
    shape = tuple(rng.choice(sizes) for _ in range(rng.randrange(5)))
    stride = tuple(rng.choice([0, 1, *sizes]) for _ in range(rng.choice([len(shape), len(shape), 2])))
    stored = _Stored(rng.choice(["0", "1", "../version", "\ud800"][:3]), count, kind)
    view = _Viewed(stored, rng.choice([0, 0, *sizes]), rng.choice([shape, list(shape)]), stride)
    names = ["input_blocks.0.0.weight", "out.2.weight"]
    value = rng.choice([dict.fromkeys(names, view), {"format": view}, view, {f"w{i}": view for i in range(2000)}])
    return _torch_file(value, {"0": bytes(16), "1": bytes(4)})


def resized(data: bytes, rng: random.Random) -> bytes:
    """Change the size in a PNG's header, with a correct checksum; in other pictures, any number."""
    if not data.startswith(b"\x89PNG"):
        return measured(data[:64], rng) + data[64:]
    size = [rng.choice([0, 1, 8, 1000, 20_000, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]).to_bytes(4, "big") for _ in "wh"]
    chunk = b"IHDR" + b"".join(size) + bytes([rng.choice([1, 8, 8, 16]), rng.randrange(7), 0, 0, rng.randrange(2)])
    return data[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]


ANY = (truncated, flipped, spliced, zeroed, doubled, exchanged, measured, replaced)
BY_SUFFIX: dict[str, tuple[Damage, ...]] = {
    ".json": (misdescribed,) * 6,
    ".jsonl": (misdescribed,) * 4,
    ".safetensors": (misdescribed,) * 5,
    ".partial": (misdescribed,) * 5,
    ".pt": (pickled, pickled, shared, shared, retyped, retyped, retyped, oversized, oversized),
    ".npz": (reshaped, reshaped, reshaped, bomb),
    ".npy": (reshaped,) * 4,
    ".png": (resized,) * 3,
    ".bmp": (resized,) * 2,
    ".webp": (resized,),
}


@dataclass(frozen=True)
class Case:
    """One damaged file, determined by seed and number."""

    seed: int
    number: int

    @property
    def kind(self) -> str:
        """Kind of the file, a key of `damage_files.KINDS`."""
        return list(damage_files.KINDS)[self.number % len(damage_files.KINDS)]

    def __str__(self) -> str:
        return f"case {self.number} of seed {self.seed} ({self.kind})"

    def damage(self, folder: Path) -> tuple[Path, str]:
        """Damage one file of the folder; return it and the names of the damages."""
        rng = random.Random(f"{self.seed}/{self.number}")
        file = folder / rng.choice(damage_files.KINDS[self.kind].files)
        ways = ANY + BY_SUFFIX[file.suffix]
        data = file.read_bytes()
        names = []
        for _ in range(rng.choice([1, 1, 1, 2])):
            way = rng.choice(ways if not names else ANY)
            names.append(way.__name__)
            data = way(data, rng) if data else data
        file.write_bytes(data)
        return file, "+".join(names)


def cases(seed: int = 0, first: int = 0) -> Iterator[Case]:
    """Yield all cases of a seed from a number on, without end."""
    while True:
        yield Case(seed, first)
        first += 1


@dataclass(frozen=True)
class Outcome:
    """Outcome of a case.

    Args:
        verdict: "refused" or "right".
        seconds: Processor time.
        memory: Bytes of additional memory.
        problem: Reason why the case fails, or None.
    """

    verdict: str
    seconds: float
    memory: int
    problem: str | None


def check(case: Case) -> str | None:
    """Run a case; return the reason why it fails, or None."""
    return run(case).problem


def run(case: Case) -> Outcome:
    """Damage a copy of the files of a kind and load them."""
    whole, folder = damage_files.whole(case.kind, _ROOT / "whole"), _ROOT / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    file, how = case.damage(folder)
    found = outcome(damage_files.KINDS[case.kind], folder, file)
    said = None if found.problem is None else f"{case}, {how} of {file.name}: {found.problem}"
    return replace(found, problem=said)


def outcome(kind: damage_files.Kind, folder: Path, file: Path) -> Outcome:
    """Load a folder with one damaged file and judge the outcome."""
    if _MARKER.is_dir():
        _MARKER.rmdir()
    _MARKER.unlink(missing_ok=True)
    before, start = _memory(reset=True), time.process_time()
    found, error = None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.load(folder)
    except Exception as raised:
        error = raised
    seconds, memory = time.process_time() - start, _memory() - before
    verdict = "right" if error is None else "refused"
    problem = _problem_with(error, file) if error is not None else None
    if error is None and not kind.sound(found):
        problem = "it was accepted, but its content is wrong"
    if _MARKER.exists():
        problem = "something in it ran"
    elif seconds > SECONDS or memory > MEMORY:
        problem = f"it took {seconds:.1f} s and {memory >> 20} MiB; {problem or verdict}"
    return Outcome(verdict, seconds, memory, problem)


def _problem_with(error: Exception, file: Path) -> str | None:
    text = str(error)
    if not isinstance(error, ValueError):
        return f"{type(error).__name__}: {text}"
    if file.name not in text and str(file.parent) not in text:
        return f"the message does not name it: {text}"
    if "weights_only" in text:
        return f"the message advises to trust it: {text}"
    return f"the message has {len(text)} characters" if len(text) > LONGEST else None


def _memory(reset: bool = False) -> int:
    """Return the process's peak memory in bytes, or 0 if it is unknown.

    `reset` restarts the peak, so that the result is the memory in use now.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    """Run the cases and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=10_000, help="number of cases")
    args = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    counts: Counter[tuple[str, str]] = Counter()
    failures, longest, largest = 0, 0.0, 0
    for case in cases(args.seed, args.first):
        if case.number == args.first + args.count:
            break
        found = run(case)
        counts[case.kind, found.verdict] += 1
        longest, largest = max(longest, found.seconds), max(largest, found.memory)
        if found.problem is not None:
            failures += 1
            print(found.problem, flush=True)
        elif args.count == 1:
            print(f"{case}: {found.verdict}")
    print(f"{'kind':<24} refused   right")
    for kind in damage_files.KINDS:
        print(f"{kind:<24} {counts[kind, 'refused']:7} {counts[kind, 'right']:7}")
    print(f"{failures} of {args.count} failed; at most {largest >> 20} MiB and {longest:.1f} s a file")
    shutil.rmtree(_ROOT, ignore_errors=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
