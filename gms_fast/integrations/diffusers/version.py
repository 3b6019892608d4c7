"""Required version of diffusers."""

from importlib.metadata import PackageNotFoundError, version

OLDEST = "0.31"


def check() -> None:
    """Raise ImportError with the required version if diffusers is older or missing."""
    try:
        found = version("diffusers")
    except PackageNotFoundError:
        found = None
    if found is None or _numbers(found) < _numbers(OLDEST):
        got = "it is not installed" if found is None else f"got {found}"
        raise ImportError(f'diffusers must be {OLDEST} or later (pip install "diffusers>={OLDEST}"): {got}')


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
