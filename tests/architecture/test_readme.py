"""README: its code runs, its links resolve, and it stays short."""

import re

from places import ROOT

import gms_fast

README = (ROOT / "README.md").read_text()


def test_code_blocks_run_in_order():
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(block, scope)
    assert scope["x"].shape == (4, 1, 28, 28)
    assert scope["y"].shape == scope["mixture"].var.shape == (8, 3, 32, 32)


def test_links_resolve():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links if "://" not in link)


def test_it_is_short():
    assert README.count("\n") < 150


def test_solvers_and_predictions_are_those_of_the_package():
    plain = "GMS", "SNDDPM", "DDPM", "DDIM", "DPMSolverPP", "UniP", "UniPC", "Euler", "Heun", "ERSDE"
    for name in (*plain, "DPMSolverV3", "GGDM"):
        assert f"`{name}(" in README
        assert hasattr(gms_fast.solvers, name)


def test_equations_cited_in_the_code_exist():
    """Every "eq. N" or "eqs. N-M" in the code exists in docs/notation.md."""
    defined = {int(n) for n in re.findall(r"\((\d+)\)$", (ROOT / "docs" / "notation.md").read_text(), re.M)}
    for folder, pattern in (("gms_fast", "*.py"), ("csrc", "*.h"), ("kernels", "*.py")):
        for file in (ROOT / folder).rglob(pattern):
            for cited in re.findall(r"eqs?\. (\d+(?:-\d+)?)", file.read_text()):
                assert {int(n) for n in cited.split("-")} <= defined, file
