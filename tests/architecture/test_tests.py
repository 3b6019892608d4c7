"""Test files: short, and each in the folder that its module has in the package."""

import pytest
from places import ROOT

PACKAGE, TESTS = ROOT / "gms_fast", ROOT / "tests"
MODULES = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
LINES = 400


def name(path):
    return str(path.relative_to(TESTS))


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=name)
def test_file_is_short(path):
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=name)
def test_tests_of_a_module_stand_where_it_does(path):
    """A file named after a module, or several, is in the folder of one of them."""
    folders = {module.parent for module in MODULES if f"test_{module.stem}" == path.stem}
    assert not folders or path.parent.relative_to(TESTS) in folders


def test_most_modules_have_tests_of_their_name():
    """The other modules are tested through their users.

    A module that loses its tests, or whose tests leave their folder, is noticed.
    """
    tested = [module for module in MODULES if (TESTS / module.parent / f"test_{module.name}").exists()]
    assert len(tested) > len(MODULES) / 2
