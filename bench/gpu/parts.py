"""Parts of a long session: commands that share a time budget, each stopped at its limit with all that it started.

A part may take its own share of the budget and whatever the parts before it left. Everything lands in one folder: the
output of all parts in a log, and a record, written anew after every part, of how each went and what it measured.
"""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from xml.etree import ElementTree

from bench.gpu import processes
from bench.records.checkout import ROOT

SECONDS = object()  # in a command: the seconds after which it should stop by itself
TAIL = 4000  # characters of the output that the record keeps of a part that did not pass
LONGEST = 1 << 20  # bytes of a part's output that the log keeps

Json = dict[str, object]


class Part(NamedTuple):
    """A command and its share of the budget in seconds.

    Of the files that it leaves in the session's folder two are read: part.json joins the record, and junit-NAME.xml is
    counted. `keep` is the record's key for the former (None: its top level).
    """

    name: str
    command: Sequence[object]
    seconds: float
    keep: str | None = None
    environment: Mapping[str, str] = MappingProxyType({})
    vital: bool = False  # nothing after it can run if it fails
    timed: bool = False  # nothing may run beside it
    beside: bool = False  # runs beside the parts after it until a timed one starts; its output is not kept
    unless: str = ""  # the part whose success makes this one superfluous


class Session:
    """Runs parts in order within `seconds`; `out` gets the record, NAME.json, and the log, NAME.txt."""

    def __init__(self, out: Path, name: str, seconds: float, environment: Mapping[str, str], record: Json) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.record: Json = {**record, "parts": {}}
        self._out, self._file, self._environment = out, out / f"{name}.json", environment
        self.log = out / f"{name}.txt"
        self._log = self.log.open("w+b", buffering=0)
        self._end = time.monotonic() + seconds
        self._beside: dict[str, subprocess.Popen] = {}

    def run(self, parts: Sequence[Part]) -> list[str]:
        """Run the parts, up to a vital one that fails, and name those that did not pass."""
        failed = []
        try:
            for i, part in enumerate(parts):
                if part.unless and part.unless not in failed:
                    continue
                limit = self._end - time.monotonic() - sum(p.seconds for p in parts[i + 1 :])
                if not self._passes(part, limit):
                    failed.append(part.name)
                    if part.vital:
                        break
        finally:
            self._stop_beside()
            self._write()
        return failed

    def _passes(self, part: Part, limit: float) -> bool:
        if part.timed:
            self._stop_beside()
        if part.beside:
            self._beside[part.name] = self._start(part, limit, subprocess.DEVNULL)
            return True
        for stale in self._files(part):
            stale.unlink(missing_ok=True)
        start, offset = time.monotonic(), self._log.seek(0, os.SEEK_END)
        self.record["parts"][part.name] = report = {"outcome": "interrupted", "limit": round(limit)}
        try:
            report["outcome"] = self._outcome(part, limit)
        finally:
            report["seconds"] = round(time.monotonic() - start, 1)
            report["tail"] = _clip(self._log, offset)
            lines = self._collect(part, report)
            if report["outcome"] == "passed":
                del report["tail"]
            else:
                lines = lines or report["tail"].strip().splitlines()[-1:]
            self._write()
            print(f"{part.name:14} {report['seconds']:6.1f} s of {limit:3.0f}  {report['outcome']}", flush=True)
            print(*(f"    {line}" for line in lines), sep="\n", end="\n" * bool(lines), flush=True)
        return report["outcome"] == "passed"

    def _outcome(self, part: Part, limit: float) -> str:
        if limit < 1:
            return "skipped: no time is left"
        try:
            process = self._start(part, limit, self._log)
        except OSError as error:
            return f"failed: {error}"
        try:
            status = process.wait(limit)
            outcome = f"failed with status {status}" if status else "passed"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s"
        finally:
            ended = processes.stop(process)
        return outcome if ended else f"{outcome}, but some of it still runs"

    def _start(self, part: Part, limit: float, output: object) -> subprocess.Popen:
        words = [f"{max(limit - processes.GRACE, 0):.0f}" if word is SECONDS else str(word) for word in part.command]
        environment = {**os.environ, **self._environment, **part.environment, "PYTHONUNBUFFERED": "1"}
        self._log.write(f"\n== {part.name}, at most {limit:.0f} s: {' '.join(words)}\n".encode())
        return processes.start(words, ROOT, environment, output)

    def _stop_beside(self) -> None:
        for name, process in self._beside.items():
            status = process.poll()
            outcome = {None: "stopped", 0: "passed"}.get(status, f"failed with status {status}")
            self.record["parts"][name] = {"outcome": outcome}
            processes.kill(process)
        self._beside.clear()

    def _collect(self, part: Part, report: Json) -> list[str]:
        """Take in the part's files, correct its outcome by them, and return the lines that are worth printing."""
        junit, left = self._files(part)
        lines = []
        if tests := counts(junit):
            report["tests"] = tests
            lines = [", ".join(f"{n} {what}" for what, n in tests.items())]
            if report["outcome"] == "passed" and not tests["passed"]:
                report["outcome"] = "skipped: no test ran"
        if left.exists():
            found = _read(left)
            lines = found.pop("lines", [])
            report["outcome"] = _but_for_skipped(report["outcome"], found)
            join(self.record.setdefault(part.keep, {}) if part.keep else self.record, found)
        return lines

    def _files(self, part: Part) -> tuple[Path, Path]:
        return self._out / f"junit-{part.name}.xml", self._out / "part.json"

    def _write(self) -> None:
        write(self._file, self.record)


def write(file: Path, record: Json) -> None:
    """Replace a file of JSON as a whole, so that no moment finds half of it."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps(record, indent=1) + "\n")
    half.replace(file)


def counts(junit: Path) -> dict[str, int]:
    """Numbers of tests that passed, failed and were skipped; {} without a report."""
    try:
        suite = ElementTree.parse(junit).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):
        return {}
    total, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def _but_for_skipped(outcome: str, found: Json) -> str:
    """The outcome of a part that may have skipped all of its work, or what its time did not suffice for."""
    if "skipped" in found:
        return f"skipped: {found['skipped']}"
    skipped = [name for name, rows in found.get("parts", {}).items() if "skipped" in rows]
    return f"{outcome}, but skipped {', '.join(skipped)}" if skipped else outcome


def _read(file: Path) -> Json:
    """The JSON in a file, which then is no more needed."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return {"lines": [f"{file.name} was cut off"]}
    file.unlink()
    return found


def join(record: Json, found: Json) -> None:
    """Add the results of a part to those of others: lists and tables grow, anything else is replaced."""
    for key, value in found.items():
        old = record.get(key)
        alike = isinstance(value, list | dict) and isinstance(old, type(value))
        record[key] = value if not alike else old + value if isinstance(value, list) else old | value


def _clip(log: object, offset: int) -> str:
    """Shorten what was logged from `offset` on to its two ends, and return the last of it."""
    log.seek(offset)
    text = log.read()
    if len(text) > LONGEST:
        text = text[: LONGEST // 2] + b"\n[...]\n" + text[-LONGEST // 2 :]
        log.truncate(offset)
        log.seek(offset)
        log.write(text)
    return text.decode(errors="replace").replace(f"{ROOT}/", "")[-TAIL:]  # a record names no machine's folders
