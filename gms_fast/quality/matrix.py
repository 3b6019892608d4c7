"""The quality matrix: cells evaluated in parallel, recorded line by line, and resumable.

A folder holds `settings.json` (everything but the cell that records depend on), `records.jsonl` (one line a cell) and
`samples/` (a few images of each). Records of other settings, or of other sources of this package, are refused.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import gms_fast
from gms_fast import interrupts, io
from gms_fast.data import names as data_names
from gms_fast.images import save_images
from gms_fast.models.saved_heads import FILE as HEADS
from gms_fast.quality import subjects
from gms_fast.quality.cells import Cell, evaluate
from gms_fast.quality.cells import check as cells_check
from gms_fast.storage import atomic, fingerprints, schema
from gms_fast.storage.locks import locked_folder
from gms_fast.storage.reading import json_value, read_bytes, read_json, refusing
from gms_fast.storage.schema import Either, Fields, Integer, Optional, Real, Text

Results = Generator[tuple[Cell, dict[str, Any]], None, None]
SETTINGS, RECORDS, IMAGES = "settings.json", "records.jsonl", "samples"
PACKAGE = Path(gms_fast.__file__).parent
_CELL = {"model": Text(), "solver": Text(), "grid": Text(), "steps": Integer(0), "range": Integer(0)}
_BESIDE = {"strength": Optional(Real(0, 1)), "origin": Text(), "n": Integer(1), "calls": Integer(0)}
_RECORD = Fields(_CELL, _BESIDE, others=Real(infinite=True, nan=True))
_SETTINGS = Fields(
    {
        "n": Either(Integer(1), Fields({}, others=Integer(1))),
        "data": Optional(Text(4096)),
        "schedule": Optional(Text()),
        "sources": Text(),
    },
    {"features": Optional(Text()), "inputs": Fields({}, others=Text())},
)
_NOT_HASHED = ("cli", "training", "quality/report.py", "__pycache__")


def inputs(paths: Iterable[str]) -> dict[str, str]:
    """Fingerprint the contents of paths: saved models, checkpoints, data.

    Names of built-in models and data are skipped.
    """
    named = {*subjects.names(), *io.EMBEDDED, *data_names()}
    found = {}
    for path in sorted(set(paths) - named):
        files = [Path(path, f) for f in (io.WEIGHTS, io.CONFIG, HEADS)] if Path(path).is_dir() else [Path(path)]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
        found[path] = hashlib.sha256("".join(digests).encode()).hexdigest()[:12]
    return found


def sources() -> str:
    """Fingerprint all that records depend on in this package: code, weights, compiled kernels."""
    files = sorted(p for s in ("*.py", "*.safetensors", "*.so") for p in PACKAGE.rglob(s))
    named = {file.relative_to(PACKAGE).as_posix(): file for file in files}
    return fingerprints.of_files({name: file for name, file in named.items() if not name.startswith(_NOT_HASHED)})


def run(
    cells: Iterable[Cell],
    out: str | Path,
    *,
    n: dict[str, int] | int,
    data: str | None = None,
    schedule: str | None = None,
    features: str | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: bool = True,
    origin: str = "",
    replace: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return the records of all cells, including those already in `out`.

    After an interrupt, the same call resumes with the cells that are not recorded.

    Args:
        cells: The cells.
        out: Folder of the records.
        n: Samples of a cell, or a mapping from model to that number.
        data: Real data for models that are not embedded.
        schedule: As in `subjects.build`.
        features: Classifier for samples and data (`subjects.build`). Required if data is a file or folder.
        device: Where networks draw, as in `cells.evaluate`; default: the CPU.
        workers: Processes, each with one thread; default: one per processor.
        progress: Show a progress bar on stderr.
        origin: Text kept with each record, for instance a commit.
        replace: Files in `out` to delete first.

    Raises ValueError for a bad cell before any is run. Also raises it if `out` has other settings or sources, and says
    which.
    """
    cells, out = list(dict.fromkeys(cells)), Path(out)
    check(cells, n, data, schedule, features)
    paths = [subjects.split(cell.model)[0] for cell in cells] + ([data] if data else [])
    said = {"data": data, "schedule": schedule, "features": features}
    settings = {"n": n, **said, "sources": sources(), "inputs": inputs(paths)}
    with locked_folder(out):
        atomic.clear(out, replace)
        _settle(out, settings)
        _mend(out)
        done = {cell_of(record): record for record in read(out)}
        todo = [cell for cell in cells if cell not in done]
        bar = tqdm(total=len(cells), initial=len(cells) - len(todo), disable=not progress, unit="cell")
        with bar, closing(_results(todo, n, {**said, "device": device}, workers or os.cpu_count() or 1)) as results:
            for cell, result in results:
                done[cell] = result["record"] | {"origin": origin}
                _append(out, done[cell], result["shown"])
                bar.update()
    return [done[cell] for cell in cells]


def check(
    cells: Iterable[Cell], n: dict[str, int] | int, data: str | None, schedule: str | None, features: str | None = None
) -> None:
    """Raise ValueError for a cell that cannot be evaluated, and say why."""
    for cell in sorted(cells, key=lambda c: c.model):  # by model: only a few models are cached
        cells_check(cell, _count(n, cell.model), subjects.build(cell.model, data, schedule, features))


def _count(n: dict[str, int] | int, model: str) -> int:
    if isinstance(n, dict) and model not in n:
        raise ValueError(f"n must give the number of samples of {model}: got numbers for {sorted(n)} only")
    return n[model] if isinstance(n, dict) else n


def read(out: Path) -> list[dict[str, Any]]:
    """Read the records in a folder, without a last line that an interrupt cut off.

    Raises ValueError that names the file, the line and the key that is wrong.
    """
    file = out / RECORDS
    lines, records = _whole_lines(file).splitlines(), []
    for number, line in enumerate(lines, 1):
        with refusing(f"{file}, line {number}, is not a record", file):
            records.append(json_value(line, infinite=True))
            schema.check("", records[-1], _RECORD)
    return records


def _whole_lines(file: Path) -> str:
    with refusing(f"{file} cannot be read", file):
        text = read_bytes(file).decode() if file.exists() else ""
    return text[: text.rfind("\n") + 1]


def _mend(out: Path) -> None:
    """Remove a last line that an interrupt left unfinished."""
    file = out / RECORDS
    if file.exists() and (whole := _whole_lines(file)) != file.read_text():
        atomic.write_text(file, whole)


def picture(cell: Cell) -> str:
    """Return the file name of a cell's first samples."""
    plain = "".join(c if c.isalnum() or c in "-." else "_" for c in f"{cell.model}-{cell.solver}-{cell.grid}")
    strength = "" if cell.strength is None else f"-{cell.strength:g}"
    return f"{plain}-{cell.steps}{strength}.png"


def cell_of(record: dict[str, Any]) -> Cell:
    """Return the cell that a record belongs to."""
    return Cell(**{field.name: record[field.name] for field in fields(Cell) if field.name in record})


def _settle(out: Path, settings: dict[str, Any]) -> None:
    """Store the settings in `out`, or compare them with those stored there.

    Raises ValueError that lists the differences.
    """
    settings = json.loads(json.dumps(settings))
    file = out / SETTINGS
    if file.exists():
        with refusing(f"{file} holds no settings", file):
            stored = read_json(file)
            schema.check("", stored, _SETTINGS)
        settings["inputs"] = {**stored.get("inputs", {}), **settings["inputs"]}  # of earlier runs too
        if all(settings["inputs"][k] == v for k, v in stored.get("inputs", {}).items()):
            stored["inputs"] = settings["inputs"]
        differ = [k for k in settings if stored.get(k) != settings[k]]
        if differ:
            lines = "; ".join(f"{k} is {stored.get(k)!r} there and {settings[k]!r} here" for k in differ)
            raise ValueError(f"out: {out} holds records of another configuration, choose another folder: {lines}")
    elif atomic.occupied(out):
        raise ValueError(f"out: {out} is not empty and holds no {SETTINGS}: choose another folder")
    atomic.write_text(file, json.dumps(settings, indent=1) + "\n")


def _append(out: Path, record: dict[str, Any], shown: np.ndarray | None) -> None:
    if shown is not None:
        (out / IMAGES).mkdir(exist_ok=True)
        save_images(torch.from_numpy(shown), out / IMAGES / picture(cell_of(record)), columns=len(shown))
    atomic.append_line(out / RECORDS, json.dumps(record))


def _results(todo: Sequence[Cell], n: Any, said: dict[str, Any], workers: int) -> Results:
    """Yield (cell, result) in order of completion; drop unfinished cells if the caller stops."""
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(todo)), context, initializer=_begin, initargs=(theirs,))
    try:
        with interrupts.blocked():
            jobs = {pool.submit(evaluate, c, _count(n, c.model), **said): c for c in todo}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)  # not `with`: its own shutdown would undo the cancelling
        theirs.close()


def _begin(pipe: Connection) -> None:
    """Prepare a worker: one thread, and exit when the process at the pipe's other end ends."""
    torch.set_num_threads(1)

    def end() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
