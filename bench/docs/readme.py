"""Show the committed results in the README and other pages: `python -m bench.docs.readme`.

Draws docs/roofline.png too. Reads bench/results/ only. --check writes nothing and fails where a page or the picture is
out of date.
"""

import argparse
import json
from collections.abc import Callable, Mapping

from bench.docs import style
from bench.docs.loop_table import STEP, STEPS, loop_table
from bench.docs.roofline import draw, points
from bench.docs.scale import claims_table, generation_table, scale_table
from bench.experiments import any_network, editing
from bench.gpu.targets import TARGETS, card
from bench.records.checkout import RESULTS, ROOT
from gms_fast.storage import atomic

README, PICTURE = ROOT / "README.md", ROOT / "docs" / "roofline.png"
OPS = ("gms_step", "sample_mixture", "fit_mixture", "philox", "affine_noise")
CPU_ROWS = {
    "gms_step exact/sample": "`gms_step` exact, one component a sample",
    "gms_step exact/element": "`gms_step` exact, one component an element",
    "gms_step free/sample": "`gms_step` free, one component a sample",
    "gms_step free/element": "`gms_step` free, one component an element (the default)",
    "gms_step gaussian/sample": "`gms_step` gaussian (SN-DDPM)",
    "eager DDPM update": "plain DDPM update in eager torch",
    "eager closed fit": "the closed fit in eager torch",
    "torch.compile of the closed fit": "the closed fit under `torch.compile`",
    "gms_step adan/sample": "`gms_step` adan: the released optimiser, no autograd",
    "released-style autograd fit": "released-style fit under autograd",
}
BACKENDS = {"cuda": "CUDA", "triton": "Triton"}
NO_GPU = """\
No GPU has run this version yet: `python -m bench.gpu.gpu_check` fills the empty cells. Predictions are for an H200,
made from the machine code (`python -m bench.gpu.predict`), not measured."""


def load(name: str) -> dict:
    """Return a committed result, {} if there is none."""
    file = RESULTS / name
    return json.loads(file.read_text()) if file.exists() else {}


def cpu_table() -> str:
    result = load("gms_step_cpu.json")
    medians = {row["name"]: row["over_randn"][1] for row in result["rows"]}
    lines = ["| | time, in units of `torch.randn_like` of the tensor |", "|---|---|"]
    for name, label in CPU_ROWS.items():
        if name in medians:
            lines.append(f"| {label} | {medians[name]:.{0 if medians[name] >= 100 else 2}f} |")
    return "\n".join(lines)


def gpu_table() -> str:
    gpu, foretold = load("gpu.json"), load("h200_predicted.json").get("rows", [])
    columns = {label: _measured(gpu.get(b, {})) for b, label in BACKENDS.items()}
    for b, label in BACKENDS.items():
        if not columns[label] and (guessed := _predicted(foretold, b)):
            columns[f"{label}, predicted"] = guessed
    lines = [
        _source(gpu),
        "",
        f"| 2^26 elements unless said | bar | {' | '.join(columns)} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for target in TARGETS.values():
        if target.card in ("", card(_device(gpu))) or not gpu:
            cells = " | ".join(values.get(target.name, "-") for values in columns.values())
            lines.append(
                f"| {target.name} | {'≤' if target.at_most else '≥'} {target.form.format(target.bar)} | {cells} |"
            )
    return "\n".join(lines)


def _measured(backend: dict) -> dict[str, str]:
    """Return the cell of each target that the backend measured."""
    bars = {bar["name"]: bar for bar in backend.get("bars", [])}
    return {t.name: _cell(t.form, bars[t.name]) for t in TARGETS.values() if t.name in bars}


def _cell(form: str, bar: dict) -> str:
    """Return a figure, its bound if not the GPU, and the commit of a figure from an earlier run."""
    bound = " (bound by the host)" if "bound by" in bar else ""
    kept = f" (commit {bar['commit']})" if "commit" in bar else ""
    return form.format(bar["value"]) + bound + kept


def _predicted(rows: list[dict], backend: str) -> dict[str, str]:
    """Return the cell of each target that `bench.gpu.predict` predicts."""
    shares = {row["name"]: row["of_copy"] for row in _of(rows, backend)}
    return {t.name: t.form.format(shares[t.predicted]) for t in TARGETS.values() if t.predicted in shares}


def _of(rows: list[dict], backend: str) -> list[dict]:
    """Return the predictions for a backend; those that name none are for Triton."""
    return [row for row in rows if row.get("backend", "triton") == backend]


def _device(gpu: dict) -> str:
    """Return the name of the measured GPU; empty if none is named."""
    named = (gpu.get(b, {}).get("environment", {}).get("gpu") for b in BACKENDS)
    return gpu.get("gpu") or next(filter(None, named), "")


def _source(gpu: dict) -> str:
    """Return a line on the source of the figures, and on missing ones."""
    if not gpu:
        return NO_GPU
    places = [gpu.get(b, {}).get("environment", {}) for b in BACKENDS]
    facts = [f"On {_device(gpu) or 'a GPU without a name'}"]
    for label, found in (
        ("driver", {gpu.get("driver")}),
        ("torch", {place.get("torch") for place in places}),
        ("commit", {place.get("commit") for place in places}),
        ("on", {place.get("date") for place in places}),
    ):
        if known := sorted(filter(None, found)):
            facts.append(f"{label} {', '.join(known)}")
    text = f"{', '.join(facts)} (`python -m bench.gpu.gpu_check`)"
    missing = [f"{label} {what}" for b, label in BACKENDS.items() for what in _missing(gpu.get(b, {}))]
    return f"{text}; not measured: {', '.join(missing)}." if missing else f"{text}:"


def _missing(backend: dict) -> list[str]:
    """Return parts of a backend, and cases of parts, that were skipped or failed."""
    if "parts" not in backend:
        return ["as a whole"]
    found = []
    for name, part in backend["parts"].items():
        whole = "skipped" in part or "error" in part
        found += [f"({name})"] if whole else [f"({name}: {case})" for case in part.get("failed", {})]
    return found


def wasserstein_table() -> str:
    lines = (RESULTS / "wasserstein.md").read_text().strip().splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


BLOCKS = {"bench/results/gms_step_cpu.json": cpu_table, "bench/results/wasserstein.md": wasserstein_table}
OF_SPEED = {
    "bench/results/gms_step_cpu.json": cpu_table,
    "bench/results/loop_cpu.json": lambda: loop_table(load("loop_cpu.json")),
    "bench/results/gpu.json": gpu_table,
}
OF_DIFFUSERS = {"bench/results/schedulers_cpu.json": lambda: loop_table(load("schedulers_cpu.json"), STEP, STEPS)}
OF_HEADS = {"bench/results/any_network.json": lambda: any_network.table(load("any_network.json"))}
OF_EDITING = {
    f"bench/results/editing.json {name}": lambda name=name, table=table: table(load("editing.json")[name])
    for name, table in editing.TABLES.items()
}
OF_GENERATION = {"bench/results/generation.json": lambda: generation_table(load("generation.json"))}
OF_SCALE = {
    "bench/results/released_step_h200.json": lambda: scale_table(load("released_step_h200.json")),
    "bench/results/claims.json": lambda: claims_table(load("claims.json")),
}
PAGES = {
    README: BLOCKS,
    ROOT / "docs" / "speed.md": OF_SPEED,
    ROOT / "docs" / "diffusers.md": OF_DIFFUSERS,
    ROOT / "docs" / "heads.md": OF_HEADS,
    ROOT / "docs" / "editing.md": OF_EDITING,
    ROOT / "docs" / "generation.md": OF_GENERATION,
    ROOT / "docs" / "scale.md": OF_SCALE,
}


def page(text: str, blocks: Mapping[str, Callable[[], str]] = BLOCKS) -> str:
    """Return the text with every block between its markers made anew."""
    for name, make in blocks.items():
        begin, end = f"<!-- begin {name} -->\n", f"\n<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"the page must hold a pair of markers for {name}")
        text = before + begin + make() + end + after
    return text


def panels() -> list[dict[str, object]]:
    """Return the panels of docs/roofline.png: the CPU and each GPU backend."""
    results = [load(f"{op}_cpu.json") for op in OPS]
    cpu = {
        "title": f"CPU, {results[0]['environment']['threads']} threads, 128x3x32x32 (in cache)",
        "ridge": results[0].get("ridge"),
        "measured": points([row for r in results for row in r.get("rows", [])], narrow=False),
        "predicted": {},
    }
    return [cpu, *filter(None, map(_gpu_panel, BACKENDS))]


def _gpu_panel(backend: str) -> dict[str, object] | None:
    """Return a panel, measured if there is a measurement, else predicted; None without either."""
    gpu = load("gpu.json")
    parts = gpu.get(backend, {}).get("parts", {}).values()
    stream = [part for part in parts if "rows" in part and part.get("shape") == "stream"]
    measured = points([row for part in stream for row in part["rows"]], narrow=True)
    predicted = {} if measured else points(_of(load("h200_predicted.json").get("rows", []), backend), narrow=True)
    if not (measured or predicted):
        return None
    device = _device(gpu) or "GPU" if measured else "H200, predicted"
    return {
        "title": f"{device}, {BACKENDS[backend]}, $2^{{26}}$ elements",
        "ridge": next((part["ridge"] for part in stream if "ridge" in part), None),
        "measured": measured,
        "predicted": predicted,
    }


def out_of_date() -> list[str]:
    """Return the files that do not show the committed results."""
    current = style.current(PICTURE, panels())
    texts = {file: file.read_text() for file in PAGES}
    fresh = {file.name: page(text, PAGES[file]) == text for file, text in texts.items()}
    return [name for name, good in {**fresh, PICTURE.name: current}.items() if not good]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something is out of date")
    args = parser.parse_args()
    if args.check:
        if stale := out_of_date():
            raise SystemExit(f"out of date: {', '.join(stale)}; run python -m bench.docs.readme")
        return
    for file, blocks in PAGES.items():
        atomic.write_text(file, page(file.read_text(), blocks))
    draw(panels(), PICTURE)


if __name__ == "__main__":
    main()
