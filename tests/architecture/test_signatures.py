"""Signatures as an editor shows them: explicit options, and a stub of the compiled module."""

import ast
import inspect
import re
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import gms_fast
from gms_fast import io, search, training
from gms_fast.models import MomentUNet
from gms_fast.ops import native

PACKAGE = Path(gms_fast.__file__).parent
ANY_KEYWORDS = {
    "gms_fast.io.load",
    "gms_fast.models.wrap.wrap",
    "gms_fast.guidance.ClassifierFree.first_outputs",
    "gms_fast.guidance.ClassifierFree.outputs",
    "gms_fast.models.moment_heads.MomentHeads.first_moment",
    "gms_fast.models.moment_heads.MomentHeads.observed",
    "gms_fast.models.unet.MomentUNet.first_moment",
    "gms_fast.models.jacobian_variance.JacobianVariance.first_moment",
}  # keywords that are typed, or go to a network of the user


def ours(value):
    return getattr(value, "__module__", "").startswith("gms_fast.")


def reachable():
    """Return the public functions and classes of `gms_fast` and of its modules."""
    shown = [getattr(gms_fast, name) for name in dir(gms_fast) if not name.startswith("_")]
    modules = [value for value in shown if isinstance(value, ModuleType) and value.__name__.startswith("gms_fast.")]
    named = [pair for module in (gms_fast, *modules) for pair in vars(module).items()]
    inside = [value for name, value in named if not name.startswith("_")]
    return {value for value in shown + inside if isinstance(value, (FunctionType, type)) and ours(value)}


def called(value):
    """Return a function, or the constructor and public methods of a class.

    `forward` is left out, because it passes on keyword conditions.
    """
    if not isinstance(value, type):
        return [value]
    names = [name for name in vars(value) if name == "__init__" or not (name.startswith("_") or name == "forward")]
    found = (inspect.getattr_static(value, name) for name in names)
    return [getattr(f, "__func__", f) for f in found if isinstance(f, FunctionType | classmethod) and ours(f)]


def test_no_public_function_hides_its_options():
    functions = {f.__module__ + "." + f.__qualname__: f for value in reachable() for f in called(value)}
    assert {"gms_fast.sampling.sample", "gms_fast.solvers.gms.GMS.__init__"} < functions.keys()
    assert len(functions) > 100
    parameters = {name: inspect.signature(f).parameters.values() for name, f in functions.items()}
    hiding = {name for name, given in parameters.items() if any(p.kind is p.VAR_KEYWORD for p in given)}
    assert hiding == ANY_KEYWORDS


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (training.train_noise_network, training.Settings),
        (training.train_moment_heads, training.Settings),
        (search.ggdm, search.Settings),
    ],
)
def test_options_are_the_settings_with_their_defaults(function, settings):
    given, kept = (inspect.signature(f).parameters for f in (function, settings))
    assert {n: (given[n].default, given[n].annotation) for n in kept} == {
        n: (kept[n].default, kept[n].annotation) for n in kept
    }


def test_load_knows_the_arguments_of_the_network():
    wanted = {name: p.annotation for name, p in inspect.signature(MomentUNet).parameters.items()}
    known = dict(io.Overrides.__annotations__)
    assert wanted.pop("schedule") != known.pop("schedule")  # `load` also takes a name or a config
    assert known == wanted


def stub():
    """Return the public names of `_C.pyi` with the number of arguments of each."""
    found = {}
    for node in ast.parse((PACKAGE / "_C.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = len(node.args.posonlyargs)
        elif isinstance(node, ast.ClassDef):
            (made,) = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found[node.name] = len(made.args.posonlyargs) - 1
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = 0
    return found


@pytest.mark.skipif(not native.available, reason="no compiled module")
def test_stub_names_what_the_compiled_module_has():
    def arguments(value):
        said = value.__init__.__doc__ if isinstance(value, type) else value.__doc__
        return len(re.findall(r"\barg\d+: ", said.partition("\n")[0])) if callable(value) else 0

    public = {name: value for name, value in vars(native.compiled).items() if not name.startswith("__")}
    assert stub() == {name: arguments(value) for name, value in public.items()}
