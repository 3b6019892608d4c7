"""Names of solvers and time grids as the quality report shows them."""

from gms_fast.solvers.text import parse

SOLVERS = {
    "ddpm": "DDPM",
    "sn-ddpm": "SN-DDPM",
    "ddim": "DDIM",
    "gms": "GMS",
    "dpm-solver++": "DPM-Solver++(2M)",
    "diffusers": "diffusers DPM-Solver++(2M)",
    "er-sde": "ER-SDE",
    "dpm-solver-v3": "DPM-Solver-v3",
    "unip": "UniP",
    "ggdm": "GGDM (learned coefficients)",
}
CONTROLS = {"real": "*real against real*", "gaussian": "*Gaussian control*", "guide": "*the strokes*"}
OPTIONS = {  # (option, value): words in the brackets after the name; empty if all rows of a name share the value
    ("fit", "free"): "free fit",
    ("fit", "exact"): "exact fit",
    ("fit", "adan"): "released optimiser",
    ("component", "sample"): "shared component",
    ("component", "element"): "",
    ("moments", "released"): "",
    ("clip_pixel", None): "",
    ("solver_order", 2): "",
    ("denoise", False): "no final denoising",
    ("final_sigmas_type", "sigma_min"): "no final denoising",
    ("noise_scale", "ode"): "as an ODE",
    ("lower_order_final", False): "full order at the end",
}
TABLES = ("statistics", "table", "covariance")  # options that name statistics or coefficients of a model
GRIDS = {"log-snr": "log-SNR", "default": "its own"}


def name(solver: str) -> str:
    """Return the name of a solver or control from its solver string."""
    if solver in CONTROLS:
        return CONTROLS[solver]
    kind, given, then = parse(solver)
    if then:
        until = f" to {given['until']:g}" if "until" in given else ""
        return f"Teleport{until}, then {name(then)}"
    words = [word for option in given.items() if (word := _words(*option, given))]
    return f"{SOLVERS[kind]} ({', '.join(words)})" if words else SOLVERS[kind]


def _words(option: str, value: object, given: dict[str, object]) -> str:
    """Return the words for one option of a solver, or "" if the name is clear without them."""
    if option == "covariance":
        return f"covariance to {given['switch']:g}" if "switch" in given else "covariance"
    if option in (*TABLES, "switch", "eps") or (option == "component" and given.get("fit") == "adan"):
        return ""
    return OPTIONS.get((option, value), f"{option} {value}")


def grid(text: str) -> str:
    """Return the name of a time grid; a number p stands for the times 999 (1 - (k/K)^p)."""
    if text.removeprefix("open ").replace(".", "").isdigit():
        return f"power {text.removeprefix('open ')}" + (", open" if text.startswith("open ") else "")
    return GRIDS.get(text, text)


def general(solver: str, model: str) -> str:
    """Return a solver string with MODEL in place of the model whose statistics it uses."""
    for option in TABLES:
        solver = solver.replace(f"{option}={model}", f"{option}=MODEL")
    return solver
