"""Tables of times relative to diffusers.

Times of loops are from `bench.speed.loop`, those of steps from `bench.speed.schedulers`.
"""

from collections.abc import Sequence

LOOP = "state"
LOOPS = ("DDIM", "DPM-Solver++(2M)", "DDPM", "UniP-2", "Heun")
STEP = "shape of the state"
STEPS = ("DDIM", "DPM-Solver++(2M)", "SDE-DPM-Solver++(2M)", "UniPC-2", "DDPM", "EDM Euler", "flow matching, Euler")


def loop_table(result: dict, head: str = LOOP, shown: Sequence[str] = LOOPS) -> str:
    """Return our median time over that of diffusers: rows are states, columns solvers."""
    medians = {(row["name"], row["state"]): row["ratio"][1] for row in result["rows"] if "ratio" in row}
    lines = [f"| {head} | {' | '.join(shown)} |", "|---" * (1 + len(shown)) + "|"]
    for state in dict.fromkeys(row["state"] for row in result["rows"]):
        cells = (f"{medians[name, state]:.2f}" if (name, state) in medians else "-" for name in shown)
        lines.append(f"| {state} | {' | '.join(cells)} |")
    return "\n".join(lines)
