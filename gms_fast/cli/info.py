"""`gms-fast info`: versions, hardware and contents of this installation."""

import argparse
import os
import platform

SUMMARY = "Show versions, backends, solvers, schedules and embedded models."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: `gms-fast info` has no options."""


def run(args: argparse.Namespace) -> int:
    """Print one `name: value` line per fact."""
    import torch

    import gms_fast
    from gms_fast import io, schedules, solvers
    from gms_fast.version import __version__

    backends = gms_fast.backends()
    facts = {
        "gms-fast": __version__,
        "python": f"{platform.python_version()} on {platform.machine()}",
        "torch": torch.__version__,
        "triton": _triton(),
        "cuda": _cuda(),
        "cpu": f"{backends['instruction_set'] or 'no compiled module'}, {os.cpu_count()} cores",
        "backends": ", ".join(backends["available"]),
        "chosen": _chosen(backends["chosen"]),
        **{f"no {name}": reason for name, reason in backends["missing"].items()},
        "solvers": ", ".join(solvers.names()),
        "with a file": ", ".join(f"{text} ({command})" for text, command in solvers.text.with_files().items()),
        "schedules": ", ".join(schedules.names()),
        "models": ", ".join(io.embedded()) or "none",
    }
    width = max(map(len, facts)) + 1
    print("\n".join(f"{name + ':':{width}} {value}" for name, value in facts.items()))
    return 0


def _chosen(by_device: dict[str, str | None]) -> str:
    named = {"other": "every other device"}
    return ", ".join(f"{name} on {named.get(device, device)}" for device, name in by_device.items() if name)


def _triton() -> str:
    """Return triton's version; for ROCm and XPU the package has another name."""
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__


def _cuda() -> str:
    import torch

    kind = f"ROCm {torch.version.hip}" if torch.version.hip else torch.version.cuda
    if not torch.cuda.is_available():
        return f"no device (torch built {f'for {kind}' if kind else 'without CUDA'})"
    devices = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return f"{kind}, {torch.cuda.device_count()} x {', '.join(sorted(devices))}"
