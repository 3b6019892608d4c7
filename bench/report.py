"""From the committed results to the README's tables and docs/roofline.png: `python bench/report.py [--check]`.

Reads bench/results/ only. --check writes nothing and fails where the README or the picture is out of date.
"""

import argparse
import hashlib
import json
from pathlib import Path

from PIL import Image
from roofline import draw, points

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "roofline.png"
OPS = ("gms_step", "sample_mixture", "fit_mixture", "philox", "affine_noise")
CPU_ROWS = {
    "gms_step exact/sample": "`gms_step` exact, one component a sample",
    "gms_step exact/element": "`gms_step` exact, one component an element",
    "gms_step free/sample": "`gms_step` free",
    "gms_step gaussian/sample": "`gms_step` gaussian (SN-DDPM)",
    "eager DDPM update": "plain DDPM update in eager torch",
    "eager closed fit": "the closed fit in eager torch",
    "torch.compile of the closed fit": "the closed fit under `torch.compile`",
    "gms_step adan/sample": "`gms_step` adan: the released optimiser, no autograd",
    "released-style autograd fit": "released-style fit under autograd",
}
GPU_ROWS = {  # bar of gpu_rows.py: what the README calls it, format, row of predict.py
    "exact/sample, float32: share of the copy's bandwidth": (
        "`gms_step` exact, float32: share of a copy's bandwidth",
        "{:.0%}",
        "gms_step exact/sample, float32",
    ),
    "exact/sample, bfloat16 moments and output: share of the copy's bandwidth": (
        "`gms_step` exact, bfloat16 moments and output: share of a copy's bandwidth",
        "{:.0%}",
        "gms_step exact/sample, bfloat16 moments and output",
    ),
    "released-style fit / exact/sample, 512x3x32x32": (
        "released-style fit under autograd / `gms_step` exact, 512x3x32x32",
        "{:.0f}",
        None,
    ),
    "host time of one call, microseconds": ("host time of one call, µs", "{:.1f}", None),
    "share of sampling outside the network": ("share of sampling outside a CIFAR-10 U-Net", "{:.2%}", None),
}
NO_GPU = """\
No GPU has run this version yet: `python bench/gpu_check.py` fills the empty cells. What stands beside them is a
prediction for an H200 from the machine code (`python bench/predict.py`), not a measurement."""


def load(name: str) -> dict:
    """A committed result, {} if there is none."""
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
    gpu = load("gpu.json")
    predicted = {row["name"]: row["of_copy"] for row in load("h200_predicted.json").get("rows", [])}
    measured = {b: {bar["name"]: bar["value"] for bar in gpu.get(b, {}).get("bars", [])} for b in ("triton", "cuda")}
    lines = [
        _source(gpu),
        "",
        "| 2^26 elements unless said | Triton | CUDA | predicted for Triton |",
        "|---|---|---|---|",
    ]
    for name, (label, form, row) in GPU_ROWS.items():
        cells = [form.format(values[name]) if name in values else "-" for values in measured.values()]
        lines.append(f"| {label} | {' | '.join(cells)} | {form.format(predicted[row]) if row in predicted else '-'} |")
    return "\n".join(lines)


def _source(gpu: dict) -> str:
    if not gpu:
        return NO_GPU
    commits = {gpu[b]["environment"]["commit"] for b in ("triton", "cuda") if "environment" in gpu.get(b, {})}
    return (
        f"On {gpu['gpu']}, driver {gpu['driver']}, commit {', '.join(sorted(commits))} (`python bench/gpu_check.py`):"
    )


def wasserstein_table() -> str:
    lines = (RESULTS / "wasserstein.md").read_text().strip().splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


BLOCKS = {
    "bench/results/gms_step_cpu.json": cpu_table,
    "bench/results/gpu.json": gpu_table,
    "bench/results/wasserstein.md": wasserstein_table,
}


def readme(text: str) -> str:
    """The text with every block between its markers made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- begin {name} -->\n", f"\n<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"README.md must hold a pair of markers for {name}")
        text = before + begin + make() + end + after
    return text


def panels() -> list[dict[str, object]]:
    """What docs/roofline.png shows: the CPU, and the GPU measured or predicted."""
    results = [load(f"{op}_cpu.json") for op in OPS]
    gpu = load("gpu.json").get("triton", {}).get("parts", {})
    stream = [part for name, part in gpu.items() if "rows" in part and part["shape"] == "stream"]
    predicted = points(load("h200_predicted.json").get("rows", []), narrow=True)
    return [
        {
            "title": f"CPU, {results[0]['environment']['threads']} threads, 128x3x32x32 (in cache)",
            "ridge": results[0].get("ridge"),
            "measured": points([row for r in results for row in r.get("rows", [])], narrow=False),
            "predicted": {},
        },
        {
            "title": "H200, Triton, $2^{26}$ elements",
            "ridge": next((part["ridge"] for part in stream if "ridge" in part), None),
            "measured": points([row for part in stream for row in part["rows"]], narrow=True),
            "predicted": predicted,
        },
    ]


def fingerprint(shown: object) -> str:
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def out_of_date() -> list[str]:
    """The files that do not show the committed results."""
    text = README.read_text()
    current = PICTURE.exists() and Image.open(PICTURE).text.get("Inputs") == fingerprint(panels())
    return [f.name for f, good in ((README, readme(text) == text), (PICTURE, current)) if not good]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something is out of date")
    args = parser.parse_args()
    if args.check:
        if stale := out_of_date():
            raise SystemExit(f"out of date: {', '.join(stale)}; run python bench/report.py")
        return
    README.write_text(readme(README.read_text()))
    draw(panels(), PICTURE, fingerprint(panels()))


if __name__ == "__main__":
    main()
