"""Parts of a long session: commands that share a time budget, each stopped at its limit.

A part may take its own share of the budget and what earlier parts left of theirs. A part is stopped with all processes
that it started. All results go to one folder: the output of all parts in a log, and a record that is rewritten after
every part, with the outcomes and measurements.
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

SECONDS = object()  # in a command: placeholder for its time limit in seconds
TAIL = 4000  # characters of output that the record keeps of a failed part
LONGEST = 1 << 20  # bytes of output that the log keeps of a part

Json = dict[str, object]


class Part(NamedTuple):
    """A command and its share of the budget.

    Two of the files that it writes to the session's folder are read: part.json becomes part of the record, and the
    tests in junit-NAME.xml are counted.

    Args:
        name: Name of the part.
        command: Words of the command; `SECONDS` stands for its time limit.
        seconds: Its share of the budget.
        keep: Key of the record for part.json; None: the top level.
        environment: Variables that are added to the session's.
        vital: The session ends if this part fails.
        timed: No other part may run at the same time.
        beside: It runs beside the next parts until a timed one starts; its output is not kept.
        unless: Name of a part whose success makes this one superfluous.
    """

    name: str
    command: Sequence[object]
    seconds: float
    keep: str | None = None
    environment: Mapping[str, str] = MappingProxyType({})
    vital: bool = False
    timed: bool = False
    beside: bool = False
    unless: str = ""


class Session:
    """Runner of parts, in order, within `seconds`.

    `out` gets the record, NAME.json, and the log, NAME.txt.
    """

    def __init__(self, out: Path, name: str, seconds: float, environment: Mapping[str, str], record: Json) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.record: Json = {**record, "parts": {}}
        self._out, self._file, self._environment = out, out / f"{name}.json", environment
        self.log = out / f"{name}.txt"
        self._log = self.log.open("w+b", buffering=0)
        self._end = time.monotonic() + seconds
        self._beside: dict[str, subprocess.Popen] = {}

    def run(self, parts: Sequence[Part]) -> list[str]:
        """Run the parts until a vital one fails; return the names of those that did not pass."""
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
        """Read the part's files, correct its outcome by them, and return the lines to print."""
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
    """Replace a JSON file atomically."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps(record, indent=1) + "\n")
    half.replace(file)


def counts(junit: Path) -> dict[str, int]:
    """Return the numbers of tests that passed, failed and were skipped; {} without a report."""
    try:
        suite = ElementTree.parse(junit).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):
        return {}
    total, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def _but_for_skipped(outcome: str, found: Json) -> str:
    """Add to an outcome that the part skipped some or all of its work."""
    if "skipped" in found:
        return f"skipped: {found['skipped']}"
    skipped = [name for name, rows in found.get("parts", {}).items() if "skipped" in rows]
    return f"{outcome}, but skipped {', '.join(skipped)}" if skipped else outcome


def _read(file: Path) -> Json:
    """Read a JSON file and delete it."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return {"lines": [f"{file.name} was cut off"]}
    file.unlink()
    return found


def join(record: Json, found: Json) -> None:
    """Merge a part's results into the record: lists and mappings grow, other values change."""
    for key, value in found.items():
        old = record.get(key)
        alike = isinstance(value, list | dict) and isinstance(old, type(value))
        record[key] = value if not alike else old + value if isinstance(value, list) else old | value


def _clip(log: object, offset: int) -> str:
    """Shorten the log from `offset` on to its two ends; return the last of it."""
    log.seek(offset)
    text = log.read()
    if len(text) > LONGEST:
        text = text[: LONGEST // 2] + b"\n[...]\n" + text[-LONGEST // 2 :]
        log.truncate(offset)
        log.seek(offset)
        log.write(text)
    return text.decode(errors="replace").replace(f"{ROOT}/", "")[-TAIL:]  # without this machine's folders
