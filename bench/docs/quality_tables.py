"""Tables of the quality appendices: groups of the matrix, and other result files."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bench.docs import quality_legend, solver_names
from bench.docs.quality_wording import reworded
from bench.records.checkout import RESULTS
from gms_fast.quality import matrix, report
from gms_fast.quality.cells import CONTROLS, GUIDE

Records = Sequence[dict[str, Any]]
RECORDS = RESULTS / "quality"
MODELS = {  # name in the records: heading
    "mixture-1d": "Two Gaussians in one dimension, exact moments",
    "eight": "Eight Gaussians in a ring, exact moments",
    "exact-digits": "8x8 digits, exact moments",
    "exact-mnist5k": "28x28 digits, exact moments",
    "digits": "8x8 digits, learned moments",
    "digits@bfloat16": "8x8 digits, learned moments, outputs rounded to bfloat16",
    "mnist": "28x28 digits, learned moments",
    "runs/strangers/heads/unet/model": "UNet2DModel from diffusers, 8x8 digits",
    "runs/strangers/heads/dit/model": "DiTTransformer2DModel from diffusers, 8x8 digits",
    "runs/heads/raw/model": "8x8 digits, raw moments",
    "runs/heads/central/model": "8x8 digits, central moments",
    "runs/heads/normalised/model": "8x8 digits, normalised moments, complex heads",
    "runs/heads/simple/model": "8x8 digits, normalised moments, simple heads",
}
MEASURES = {  # in the order of the tables; the keys are those of report.SHOWN
    "frechet": "feature Fréchet distance",
    "wasserstein": "Wasserstein-1 distance",
    "faithful": "distance to the strokes",
    "kernel": "feature kernel distance",
    "precision": "precision",
    "recall": "recall",
    "confident": "share of clearly classified samples",
    "energy": "energy distance",
    "sliced": "sliced Wasserstein distance",
    "mean": "error of the mean",
    "variance": "error of the variance",
    "third": "error of the third central moment",
}


def records(group: str, model: str | None = None) -> list[dict]:
    """Return the committed records of a group, or those of one model."""
    found = [r for r in matrix.read(RECORDS / group) if model in (None, r["model"])]
    if not found:
        raise SystemExit(f"docs/quality asks for {model} of group {group}, of which nothing is committed")
    return found


def parts(found: Records) -> dict[str, Records]:
    """Split records with strengths by their number of network evaluations."""
    return {f" at {calls} NFE": part for calls, part in report.at_calls(found).items()} or {"": found}


def table(found: Records, measure: str) -> str:
    """Return one measure as Markdown, with readable names and numbers of evaluations."""
    named = [r | {"solver": _name(r["solver"]), "grid": solver_names.grid(r["grid"])} for r in found]
    text = report.table(named, measure).replace("`", "")
    head, rest = text.split("\n", 1)
    extra = {r["calls"] - r["steps"] for r in found if r["solver"] not in (*CONTROLS, GUIDE)}
    head = re.sub(r"K=(\d+)", lambda k: f"K = {k[1]} ({int(k[1]) + max(extra)} NFE)", head)
    return f"{head.replace(' calls', ' NFE')}\n{rest}"


def _name(solver: str) -> str:
    return solver if solver in (*CONTROLS, GUIDE) else solver_names.name(solver)


def forms(found: Records) -> str:
    """Return a table of all solvers and their solver strings as Markdown."""
    texts = defaultdict(set)
    for r in found:
        if r["solver"] not in (*CONTROLS, GUIDE):
            texts[solver_names.name(r["solver"])].add(solver_names.general(r["solver"], r["model"]))
    lines = ["| solver | solver string |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {_code(strings)} |" for name, strings in texts.items())])


def _code(texts: set[str]) -> str:
    return ", ".join(f"`{text}`" for text in sorted(texts))


def group(name: str) -> str:
    """Return all the tables of a group, under headings by model and measure."""
    found = records(name)
    origins = " and ".join(sorted({r["origin"] for r in found}))
    lines = [
        f"The tables come from `bench/results/quality/{name}/records.jsonl` ({origins}).",
        f"## How to read the tables\n\n{quality_legend.text(found)}",
        f"## Solvers\n\n{quality_legend.strings(found)}",
        forms(found),
    ]
    for model in dict.fromkeys(r["model"] for r in found):
        lines += _model([r for r in found if r["model"] == model])
    return "\n\n".join(lines)


def _model(own: Records) -> list[str]:
    lines = [f"## {MODELS[own[0]['model']]}", quality_legend.counts(own)]
    for measure, heading in MEASURES.items():
        if any(measure in r for r in own):
            better = "higher" if measure in report.HIGHER else "lower"
            meaning = quality_legend.MEASURES[measure]
            lines.append(f"### {heading[0].upper()}{heading[1:]}\n\n{meaning} {better.capitalize()} is better.")
            for at, part in parts(own).items():
                lines.append((f"**{heading[0].upper()}{heading[1:]}{at}**\n\n" if at else "") + table(part, measure))
    return lines


def file(name: str) -> str:
    """Return the tables of bench/results/NAME.md under headings, with readable names."""
    text = (RESULTS / f"{name}.md").read_text().strip()
    text = re.sub(r"^<!-- (.*) -->", rf"The tables come from `bench/results/{name}.json` (\1).", readable(text))
    text = re.sub(r"^\*\*(.*)\*\*$", lambda m: f"## {m[1][0].upper()}{m[1][1:]}", text, flags=re.MULTILINE)
    return reworded(text)


def readable(text: str) -> str:
    """Replace solver strings and the names of models and measures by readable names."""
    text = re.sub(r"`((?:sn-)?dd[pi]m\b[^`]*)`", lambda m: solver_names.name(m[1]), text)
    text = re.sub(r"\b(\d+) calls\b", r"\1 NFE", text)
    text = re.sub(
        r"^\*\*([\w-]+), (\w+)\*\*$",
        lambda m: f"**{MODELS[m[1]]}: {MEASURES[m[2]]}**" if m[1] in MODELS else m[0],
        text,
        flags=re.MULTILINE,
    )
    return text.replace("Frechet", "Fréchet").replace("feature frechet", "feature Fréchet distance")


def part(name: str, title: str, *rows: str) -> str:
    """Return the table under a title of bench/results/NAME.md, cut down to some rows.

    Rows are given by their first cells.
    """
    text = (RESULTS / f"{name}.md").read_text()
    lines = text.partition(f"**{title}**\n\n")[2].partition("\n\n")[0].strip().splitlines()
    chosen = [next(line for line in lines if line.startswith(f"| {row} |")) for row in rows]
    return reworded(readable("\n".join([*lines[:2], *chosen])))


def settings() -> str:
    """Return every setting of GMS that the search of `bench.experiments.settings` tried."""
    lines = []
    for model, by_calls in json.loads((RESULTS / "settings.json").read_text())["models"].items():
        for calls, found in by_calls.items():
            lines += [f"### {MODELS[model]}, {calls} NFE", _tried(found["tried"], model)]
    return "\n\n".join(lines)


def _tried(tried: Records, model: str) -> str:
    measures = ("frechet", "precision", "recall", "energy")
    lines = [f"| solver string | grid | {' | '.join(MEASURES[m] for m in measures)} |", "|---" * 6 + "|"]
    for r in sorted(tried, key=lambda r: r["frechet"]):
        cells = f"{r['frechet']:.1f} | {r['precision']:.3f} | {r['recall']:.3f} | {r['energy']:.4f}"
        lines.append(f"| `{solver_names.general(r['solver'], model)}` | {solver_names.grid(r['grid'])} | {cells} |")
    return "\n".join(lines)
