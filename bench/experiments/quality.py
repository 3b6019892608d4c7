"""Run the quality matrix: groups of solvers, grids and models.

    python -m bench.experiments.quality [GROUP ...] [--quick] [--heads OUT] [--out FOLDER]

Each group has its own folder with records.jsonl, tables.md and plots. After an interrupt, the same command resumes.
docs/quality.md explains the results that are committed in bench/results/quality/.

exact    exact noise moments: solvers without a network's error, on the released grid and on a better one
digits   the embedded 8x8 model: solvers, time grids, options
mnist    the embedded 28x28 model: solvers on one grid
angle    all of these on the grid "angle", now the default of GMS
cosine   exact moments of 8x8 digits on the cosine schedule
calls    the learned models at equal network calls: ER-SDE, DPM-Solver++ and -v3, and diffusers (required)
gaussian gains by the mean and covariance of the data at equal network calls: teleport, GMS with covariance
ends     multistep solvers on grids with and without a jump of noise levels at the end, with low orders there or not
stroke   stroke synthesis at equal network calls, by strength: realism against distance to the strokes; half an hour
best     GMS at searched settings and at its defaults with statistics, and recommended solvers
ggdm     tables learned for the embedded 28x28 model, beside their initial solvers and the best without a table
heads    kinds of moment heads and noise schedules, trained by bench.assets.heads into --heads
strangers  moment heads on networks of diffusers: bench.assets.strangers, then gms-fast train-heads into --heads
cifar10  a network of colour pictures with everything that solvers use, by bench.assets.colour in --heads; --data names
         the pictures
--quick  few samples of everything that is embedded, in minutes, to test the command
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from bench.records.record import environment
from gms_fast import solvers
from gms_fast.quality import matrix, report, rivals
from gms_fast.quality.cells import CONTROLS, GUIDE, Cell
from gms_fast.solvers.text import parse
from gms_fast.storage import atomic

RANGES, STEPS = range(3), (5, 10, 20)
N = {"mixture-1d": 50_000, "eight": 4000, "exact-digits": 2000, "exact-mnist5k": 800, "digits": 1000, "mnist": 800}
SOLVERS = ("ddpm", "sn-ddpm", "ddim")
FITS = tuple(f"gms:fit={fit},component={c}" for fit in ("exact", "free") for c in ("sample", "element"))
BEST = "gms:fit=free,component=element"
AT_CALLS = {  # solver: its grids; STATISTICS stands for those of the model
    BEST: ["angle"],
    "ddim": ["0.5"],
    "dpm-solver++": ["0.7"],
    "dpm-solver++:denoise=False": ["0.7"],
    "diffusers:solver_order=2": ["uniform"],
    "diffusers:solver_order=2,final_sigmas_type=sigma_min": ["uniform"],
    "er-sde": ["0.7", "uniform"],
    "er-sde:noise_scale=ode": ["0.7"],
    "dpm-solver-v3:statistics=STATISTICS": ["0.7"],
    "dpm-solver-v3:statistics=STATISTICS,trust=-2": ["0.7"],
}
BEGUN = (BEST, "sn-ddpm", "ddim", "ddpm", "er-sde")  # solvers that start at a middle time: group stroke
ENDS = ("unip", "unip:lower_order_final=False", "dpm-solver++")
PLAIN = {"dpm-solver++:denoise=False": ["0.7"], "er-sde": ["uniform"], BEST: ["angle"]}
V3 = {"dpm-solver-v3:statistics=STATISTICS,trust=-2": ["0.7", "uniform"]}
TOGETHER = {f"{BEST},covariance=STATISTICS,switch={tau}": ["angle"] for tau in (0, 1.5, 3, 8)}  # sigma/alpha
UNTIL = {
    "mnist": (10, "1.2"),
    "digits": (5, "uniform"),
    "exact-mnist5k": (5, "uniform"),
    "exact-digits": (3, "uniform"),
}
OTHER = {
    "heads": {"data": "digits"},
    "strangers": {"data": "digits"},
    "cosine": {"schedule": "cosine"},
}  # group: its own real data or schedule
OWN = {"stroke": 500, "cifar10": 10_000}  # samples of a group's cells that differ from N
BY_FOLDER = ("heads", "strangers", "cifar10")  # groups of networks that must be trained before
COLOUR = {  # solver: its grid; tables lie beside the model
    "ddpm": ["0.5"],
    "sn-ddpm": ["0.5"],
    "ddim": ["0.5"],
    f"gms:fit=adan,component=sample,moments=released,eps={1e-8 * 3072 * 100:g}": ["uniform"],  # 100 samples a call
    FITS[1]: ["angle"],
    BEST: ["angle"],
    f"{BEST},switch=none": ["angle"],
    f"teleport then {BEST}": ["angle"],
    "er-sde": ["0.7"],
    "dpm-solver++:denoise=False": ["0.7"],
    "unipc": ["0.7"],
    "dpm-solver-v3:trust=-2": ["0.7"],
}
COLOUR_CALLS, LEARNED_CALLS = (5, 10, 20, 25, 50), (5, 10)
_JUMP = "teleport:statistics={},until={} then {}"
SETTLED = {  # model: calls: settings of GMS that bench.experiments.settings found, and the grid
    "digits": {
        5: (_JUMP.format("digits", 1.5, "gms:component=sample,covariance=digits,switch=1.2"), "uniform"),
        10: (_JUMP.format("digits", 3, "gms"), "angle"),
    },
    "mnist": {5: (_JUMP.format("mnist", 3, "gms"), "1.5"), 10: (_JUMP.format("mnist", 3, "gms"), "1.2")},
}
_V3 = "dpm-solver-v3:statistics={},trust=-2"
RECOMMENDED = {  # likewise the choices of `gms_fast.recommend` (docs/quality.md gives the number of samples)
    "digits": {
        3: (_JUMP.format("digits", 2, _V3.format("digits")), "1.2"),
        5: ("dpm-solver-v3:statistics=digits", "0.7"),
        10: (_V3.format("digits"), "0.7"),
        20: (_JUMP.format("digits", 3.8, "er-sde"), "1.2"),
    },
    "mnist": {
        3: (_JUMP.format("mnist", 5.5, _V3.format("mnist")), "1.2"),
        5: (_JUMP.format("mnist", 20, _V3.format("mnist")), "1.2"),
        10: ("ggdm:table=mnist/10", "default"),
        20: (_JUMP.format("mnist", 3.2, "gms"), "1.2"),
    },
}
NOISY = ("exact-digits", "exact-mnist5k")  # data with noise of its own, which a bounded last step would remove


def adan(model: str) -> str:
    """Return the released optimiser: its eps is 1e-8 times the number of elements of a call."""
    elements = {"mixture-1d": 1, "eight": 2, "exact-digits": 64, "digits": 64}[model]
    at_once = 100 if model == "digits" else N[model]
    return f"gms:fit=adan,component=sample,moments=released,eps={1e-8 * elements * at_once:g}"


def cells(model: str, solvers: Iterable[str], grids: Iterable[str], steps: Iterable[int] = STEPS) -> list[Cell]:
    if model in NOISY:
        solvers = [f"{s}{',' if ':' in last(s) else ':'}clip_pixel=None" if bounded(s) else s for s in solvers]
    drawn = [Cell(model, s, g, k, r) for s, g, k, r in product(solvers, grids, steps, RANGES)]
    return [*(Cell(model, c, range=r) for c in CONTROLS for r in RANGES), *drawn]


def last(text: str) -> str:
    """Return the solver behind a teleport, or the solver itself."""
    return text.split(" then ")[-1]


def bounded(text: str) -> bool:
    """Return True if a solver bounds the noise of its last step."""
    return parse(last(text))[0] in ("gms", "sn-ddpm", "ddpm")


def extra_calls(text: str) -> int:
    """Return the network calls of K steps minus K, on a schedule that ends with noise."""
    name, given, _ = parse(last(text))
    if name == rivals.NAME:
        return rivals.calls(given, range(2)) - 1
    return int(given.get("denoise", solvers.kind(name).denoise))


def at_calls(model: str, solvers: dict[str, list[str]], calls: Iterable[int]) -> list[Cell]:
    """Return cells of all solvers at equal network calls, whether K steps cost K or K + 1."""
    found = []
    for text, grids in solvers.items():
        steps = [k - extra_calls(text) for k in calls]
        found += cells(model, [text.replace("STATISTICS", model)], grids, steps)
    return list(dict.fromkeys(found))


def after(until: float, solvers: Iterable[str], grid: str) -> dict[str, list[str]]:
    """Return the same solvers behind a teleport."""
    return {f"teleport:statistics=STATISTICS,until={until} then {text}": [grid] for text in solvers}


def with_gaussian(model: str) -> list[Cell]:
    """Return solvers with and without the Gaussian of the data."""
    until, grid = UNTIL[model]
    if model in NOISY:
        plain = PLAIN | {"er-sde": ["0.5"]}
        return at_calls(model, plain | after(until, plain, grid) | TOGETHER, (3, 5, 8, 10, 20))
    plain = PLAIN | V3
    compared = at_calls(model, plain | after(until, plain, grid), (3, 5, 8, 10))
    found = [*compared, *at_calls(model, TOGETHER, (5, 10))]
    if model == "mnist":
        v3, ahead = {v: ["0.7"] for v in V3}, after(20, V3, grid)
        late = v3 | ahead | {BEST: ["angle"], f"{BEST},covariance=STATISTICS,switch=3": ["angle"]}
        found += [*at_calls(model, ahead, (3, 5, 10)), *at_calls(model, late, (20,))]
    return list(dict.fromkeys(found))


def best(model: str) -> list[Cell]:
    """Return GMS at searched settings and with statistics, SN-DDPM, and recommended solvers."""
    both = {
        "sn-ddpm": ["angle"],
        f"{BEST},covariance=STATISTICS": ["angle"],
        f"teleport:statistics=STATISTICS then {BEST}": ["1.2"],
    }
    found = at_calls(model, both, (5, 10))
    for calls, (text, grid) in SETTLED[model].items():
        gaussian = f"{text.split(' then ')[0]} then sn-ddpm"
        found += at_calls(model, {text: [grid], gaussian: [grid]}, [calls])
    for calls, (text, grid) in RECOMMENDED[model].items():
        found += at_calls(model, {text: [grid]}, [calls])
    return list(dict.fromkeys(found))


def learned(model: str, calls: Iterable[int]) -> list[Cell]:
    """Return learned tables, solvers on their initial times (rounded), and the best others."""
    began = {text: ["open 0.7"] for text in ("ddim", "dpm-solver++", "unip")}
    best = {v: ["0.7"] for v in V3} | after(20, V3, "1.2")
    return [c for k in calls for c in at_calls(model, began | best | {f"ggdm:table=STATISTICS/{k}": ["default"]}, [k])]


def strokes(model: str, grids: list[str], strengths: Iterable[float], calls: Iterable[int]) -> list[Cell]:
    """Return solvers that start at the noise of each strength, with controls.

    The controls score the strokes and real pictures.
    """
    drawn = [c for c in at_calls(model, dict.fromkeys(BEGUN, grids), calls) if c.solver not in CONTROLS]
    controls = [Cell(model, c, range=r) for c in ("real", GUIDE) for r in RANGES]
    return [*controls, *(replace(c, strength=s) for s in strengths for c in drawn)]


def strangers(model: str) -> list[Cell]:
    """Return solvers of one to three moments at equal calls.

    They use the grids of their papers or defaults.
    """
    return [*cells(model, ["ddpm", "sn-ddpm", "ddim", BEST], ["0.5", "angle"], (5, 10))]


def colours(model: str) -> list[Cell]:
    """Return all solvers at equal calls, and the existing learned tables; one range of samples."""
    learned = [c for k in LEARNED_CALLS for c in at_calls(model, {"ggdm": ["default"]}, [k])]
    found = [*at_calls(model, COLOUR, COLOUR_CALLS), *learned]
    return [c for c in dict.fromkeys(found) if c.range == 0]


def groups(heads: Path | None) -> dict[str, list[Cell]]:
    """Return the cells of each group, in the order of their runs."""
    trained = sorted(heads.glob("*/model")) if heads else []
    return {
        "exact": [
            *cells("mixture-1d", [*SOLVERS, adan("mixture-1d"), *FITS], ["uniform", "0.5", "log-snr"], (3, 5, 10, 20)),
            *cells("eight", [*SOLVERS, adan("eight"), *FITS], ["0.5"]),
            *cells("exact-digits", [*SOLVERS, adan("exact-digits"), *FITS], ["uniform"]),
            *cells("exact-digits", ["sn-ddpm", "ddim", FITS[0], BEST], ["0.5"]),
            *cells("exact-mnist5k", ["sn-ddpm", "ddim", FITS[0], BEST], ["0.5"]),
        ],
        "digits": [
            *cells("digits", ["sn-ddpm", "ddim", BEST], ["uniform", "0.7", "0.5", "0.4"]),
            *cells("digits", ["ddpm", *FITS[:3], f"{BEST},weight=0.2", f"{FITS[1]},weight=0.2"], ["0.5"]),
            *cells("digits", [adan("digits"), FITS[0]], ["uniform"]),
            *cells("digits@bfloat16", ["sn-ddpm", BEST], ["0.5"]),
        ],
        "mnist": [
            *cells("mnist", ["sn-ddpm", BEST], ["0.5"]),
            *cells("mnist", ["ddim", FITS[0]], ["0.5"], (5, 10)),
        ],
        "angle": [
            *cells("digits", ["sn-ddpm", "ddim", BEST], ["angle"]),
            *cells("mixture-1d", ["sn-ddpm", "ddim", BEST], ["angle"], (3, 5, 10, 20)),
            *cells("exact-digits", ["sn-ddpm", "ddim", FITS[0], BEST], ["angle"]),
            *cells("mnist", ["sn-ddpm", BEST], ["angle"], (5, 10)),
        ],
        "cosine": cells("exact-digits", ["sn-ddpm", BEST], ["uniform", "0.5"]),
        "calls": [*at_calls("digits", AT_CALLS, STEPS), *at_calls("mnist", AT_CALLS, (5, 10))],
        "gaussian": [c for model in UNTIL for c in with_gaussian(model)],
        "ends": [
            *cells("digits", ENDS, ["uniform", "quadratic", "angle", "log-snr"], (5, 10)),
            *cells("digits", ENDS, ["uniform", "quadratic"], (20,)),
            *cells("mnist", ENDS[::2], ["uniform", "quadratic"], (10,)),
        ],
        "stroke": [
            *strokes("digits", ["uniform", "angle"], (0.2, 0.4, 0.6, 0.8), STEPS),
            *strokes("mnist", ["uniform"], (0.3, 0.5, 0.7), (5, 10)),  # "angle" was worse in a trial of 5 calls
        ],
        "best": [c for model in SETTLED for c in best(model)],
        "ggdm": list(dict.fromkeys(learned("mnist", (5, 10)))),
        "strangers": [cell for folder in trained for cell in strangers(str(folder))],
        "cifar10": [cell for folder in trained for cell in colours(str(folder))],
        "heads": [cell for folder in trained for cell in cells(str(folder), ["sn-ddpm", BEST], ["0.5"], (5, 10))],
    }


def quick() -> list[Cell]:
    models = {"mixture-1d": (3, 10), "eight": (5,), "exact-digits": (5,), "digits": (5, 10)}
    return [c for m, steps in models.items() for c in cells(m, ["sn-ddpm", "ddim", BEST], ["angle"], steps)]


def run(name: str, todo: list[Cell], out: Path, n: dict[str, int], **options: Any) -> None:
    options |= {"progress": sys.stderr.isatty(), "origin": f"commit {environment()['commit']}"}
    records = matrix.run(todo, out, n=n, **options)
    atomic.write_text((out / "tables.md"), f"# Quality matrix: {name}\n\n{report.tables(records)}")
    for model in dict.fromkeys(r["model"] for r in records):
        own = [r for r in records if r["model"] == model]
        draw = report.plot_strokes if report.at_calls(own) else report.plot
        draw(own, out / f"{Path(model).parent.name if '/' in model else model}.png")
    print(f"{name}: {len(records)} cells, {out / 'tables.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"as in bench/README.md (default: all but {', '.join(BY_FOLDER)})")
    parser.add_argument("--quick", action="store_true", help="few samples, to test the command")
    parser.add_argument(
        "--heads", type=Path, help="folder of trained heads, NAME/model each (bench.assets.heads, gms-fast train-heads)"
    )
    parser.add_argument("--data", help="for group cifar10: .npz of images and labels")
    parser.add_argument("--device", help="for group cifar10: device of the networks (default: cpu)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quality"), help="folder of the groups (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one a processor)")
    args = parser.parse_args()
    known = groups(args.heads)
    if unknown := set(args.groups) - set(known):
        raise SystemExit(f"groups must be some of {', '.join(known)}: got {', '.join(sorted(unknown))}")
    if set(BY_FOLDER) & set(args.groups) and not known["heads"]:
        raise SystemExit("heads: --heads must name a folder with heads, FOLDER/NAME/model each")
    if "cifar10" in args.groups and args.data is None:
        raise SystemExit("cifar10: --data must name the file of its pictures")
    if args.quick:
        n = {"mixture-1d": 5000, "eight": 500, "exact-digits": 300, "digits": 300}
        run("quick", quick(), args.out / "quick", n, workers=args.workers)
        return
    for name in args.groups or [g for g in known if g not in BY_FOLDER]:
        n = {c.model: OWN.get(name) or N.get(c.model, N["digits"]) for c in known[name]}
        other = (
            {"data": args.data, "features": "cifar10", "device": args.device}
            if name == "cifar10"
            else OTHER.get(name, {})
        )
        run(name, known[name], args.out / name, n, workers=args.workers, **other)


if __name__ == "__main__":
    main()
