"""Extension of griffe that shows values of defaults in place of names of the code."""

import importlib
import inspect
from typing import Any

import griffe

MODELS = "the model's"  # in lists of parameters, for UNSAID: the model's attribute is the default
NAMES = (griffe.ExprName, griffe.ExprAttribute)


class Defaults(griffe.Extension):
    """Replace a default that is a name or an attribute by its value at run time."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change the parameters of all functions and dataclasses of a package."""
        change(pkg)


def change(owner: griffe.Module | griffe.Class) -> None:
    """Change the parameters of all functions in a module or class."""
    for member in owner.members.values():
        if isinstance(member, griffe.Function):
            fill(member, owner if member.name == "__init__" else member)
        elif isinstance(member, griffe.Module | griffe.Class):
            change(member)


def fill(function: griffe.Function, described: griffe.Object) -> None:
    """Change the parameters of one function, which the docstring of `described` lists."""
    named = {each.name: each for each in function.parameters if isinstance(each.default, NAMES)}
    values = {name: value for name, value in defaults(function).items() if name in named} if named else {}
    unsaid = [name for name in values if str(named[name].default).endswith("UNSAID")]
    for name, value in values.items():
        named[name].default = shown(value)
    for section in described.docstring.parsed if unsaid and described.docstring else ():
        if section.kind is griffe.DocstringSectionKind.parameters:
            for each in section.value:
                each.value = MODELS if each.name in unsaid else each.value


def defaults(function: griffe.Function) -> dict[str, Any]:
    """Return the run-time default of each parameter."""
    found = importlib.import_module(function.module.path)
    for part in function.path.removeprefix(f"{function.module.path}.").split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def shown(value: Any) -> str:
    """Return the text of a default."""
    return value.__qualname__ if inspect.isroutine(value) or inspect.isclass(value) else repr(value)
