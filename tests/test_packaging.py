"""Weights come with their licence."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEIGHTS = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".bin")
FILES = [path for top in ("gms_fast", "tests") for path in (ROOT / top).rglob("*") if path.suffix in WEIGHTS]
FOLDERS = sorted({str(path.parent.relative_to(ROOT)) for path in FILES})


def test_weights_are_found_wherever_they_lie():
    assert {"gms_fast/models/mnist", "gms_fast/search/networks", "tests/vectors"} < set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_weights_come_with_the_licence_of_themselves_and_of_their_data(folder):
    licence = (ROOT / folder / "README.md").read_text().partition("\n## Licence\n")[2]
    assert "LICENSE (MIT)" in licence
    data = {"MNIST": "CC BY-SA 3.0", "scikit-learn's digits": "CC BY 4.0"}
    assert all((name in licence) == (terms in licence) for name, terms in data.items())
    assert any(name in licence for name in data) == folder.startswith("gms_fast")
