"""The README's table of loop times, from a result of `bench.speed.loop`."""

HEAD = "the loop outside the network, over diffusers' (`python -m bench.speed.loop`)"
SHOWN = {
    "DDIM": "DDIM",
    "DPM-Solver++(2M)": "DPM-Solver++(2M)",
    "DDPM": "DDPM",
    "UniP-2": "UniP-2",
    "Heun": "Heun",
}


def loop_table(result: dict) -> str:
    """A row a state, a column a solver: our time outside the network over diffusers'."""
    medians = {(row["name"], row["state"]): row["ratio"][1] for row in result["rows"] if "ratio" in row}
    lines = [
        f"| {HEAD} | {' | '.join(SHOWN.values())} |",
        "|---" * (1 + len(SHOWN)) + "|",
    ]
    for state in dict.fromkeys(row["state"] for row in result["rows"]):
        cells = (f"{medians[name, state]:.2f}" if (name, state) in medians else "-" for name in SHOWN)
        lines.append(f"| {state} | {' | '.join(cells)} |")
    return "\n".join(lines)
