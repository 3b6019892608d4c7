"""Every public name has an example in its docstring, and it runs and prints what it says."""

import doctest

import numpy as np
import pytest
import torch
from public import distinct

import gms_fast

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = distinct()


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_example_runs(name, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    given = {"gms_fast": gms_fast, "torch": torch, "np": np}
    finder = doctest.DocTestFinder(recurse=isinstance(PUBLIC[name], type))
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    said: list[str] = []
    examples = [found for found in finder.find(PUBLIC[name], name, globs=given) if found.examples]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for found in examples:
            runner.run(found, out=said.append)
    assert examples
    assert not runner.failures, "".join(said)
