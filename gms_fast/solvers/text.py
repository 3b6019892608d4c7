"""Solver strings: "er-sde:order=2", "gms:fit=exact", "teleport:until=10 then er-sde".

    string   name [":" option "=" value {"," option "=" value}] [" then " string]
    value    a number, true, false, none, or any other string

`sample`, every command and every configuration file accept solver strings. For a solver that needs statistics or a
table, the option names an embedded model or a file, as in "dpm-solver-v3:statistics=mnist", "gms:covariance=mnist" and
"ggdm:table=mnist/5". Without the option, the file that lies beside the sampled model is used (see `origin` of `build`).
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from gms_fast import constants
from gms_fast.solvers.ancestral import DDPM, SNDDPM
from gms_fast.solvers.base import Solver
from gms_fast.solvers.ddim import DDIM
from gms_fast.solvers.dpm_solver_pp import DPMSolverPP
from gms_fast.solvers.dpm_solver_v3 import DPMSolverV3
from gms_fast.solvers.er_sde import ERSDE
from gms_fast.solvers.ggdm import GGDM
from gms_fast.solvers.gms import GMS
from gms_fast.solvers.heun import Euler, Heun
from gms_fast.solvers.teleport import Teleport
from gms_fast.solvers.unip import UniP, UniPC
from gms_fast.storage.embedded import named
from gms_fast.tables import empirical, gaussian, ggdm

_THEN = " then "
_PLAIN: dict[str, type[Solver]] = {
    "gms": GMS,
    "ddpm": DDPM,
    "sn-ddpm": SNDDPM,
    "ddim": DDIM,
    "dpm-solver++": DPMSolverPP,
    "er-sde": ERSDE,
    "unip": UniP,
    "unipc": UniPC,
    "euler": Euler,
    "heun": Heun,
}
_WITH_TABLES: dict[str, type[Solver]] = {"dpm-solver-v3": DPMSolverV3, "teleport": Teleport, "ggdm": GGDM}
NAMES_OF_TABLES = ("statistics", "covariance", "table")  # options that name one
FLAG, NUMBER, EITHER = "True or False", "a number", "True, False or a number"
_WORDS = {"true": True, "false": False, "none": None}


class Table(NamedTuple):
    """File that a solver needs: its reader, its name beside a model, and its command."""

    load: Callable[[str | Path], Any]
    file: str
    command: str


CURVES = Table(empirical.load, empirical.FILE, "gms-fast statistics")
COVARIANCE = Table(gaussian.load_gaussian, gaussian.FILE, "gms-fast statistics --gaussian")
LEARNED = Table(ggdm.load_table, "ggdm-{steps}.safetensors", "gms-fast search")
_TABLES = {
    (DPMSolverV3, "statistics"): CURVES,
    (Teleport, "statistics"): COVARIANCE,
    (GMS, "covariance"): COVARIANCE,
    (GGDM, "table"): LEARNED,
}


def names() -> list[str]:
    """Return the names of the solvers that need no statistics or table.

    Returns:
        List of names, which [`build`][gms_fast.solvers.build] and `sample(solver=..)` accept.

    Examples:
        >>> "unipc" in gms_fast.solvers.names()
        True
    """
    return list(_PLAIN)


def with_files() -> dict[str, str]:
    """Return the solver string of each solver that needs a file, and the command that writes it."""
    found = {
        name: (option, table) for name, made in _WITH_TABLES.items() for option, table in _tables(made, {}).items()
    }
    return {f"{name}:{option}=FILE": table.command for name, (option, table) in found.items()}


def kind(name: str) -> type[Solver]:
    """Return the solver class of a name, including those that need a table.

    Args:
        name: Name of a solver, such as "gms" or "dpm-solver-v3".

    Returns:
        A subclass of [`Solver`][gms_fast.Solver].

    Raises:
        ValueError: If no solver has that name; the message lists them.

    Examples:
        >>> gms_fast.solvers.kind("er-sde").__name__
        'ERSDE'
    """
    kinds = _PLAIN | _WITH_TABLES
    if name not in kinds:
        raise ValueError(f"solver must be a Solver or one of {', '.join(kinds)}: got {name!r}")
    return kinds[name]


def parse(text: str) -> tuple[str, dict[str, Any], str]:
    """Split a solver string into (name, options, string after " then ").

    Raises ValueError for an option that has no value or is given twice.
    """
    name, given, then = _parts(text)
    return name, {option: value for option, value in given}, then  # noqa: C416 - torch.compile follows no dict(..)


@constants.function
def _parts(text: str) -> tuple[str, tuple[tuple[str, Any], ...], str]:
    first, _, then = text.partition(_THEN)
    name, _, listed = first.partition(":")
    given: dict[str, Any] = {}
    for option in filter(None, listed.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not key or not equals or key in given:
            raise ValueError(
                f"solver options must be written as in gms:fit=free,weight=0.3: got {option!r} in {first!r}"
            )
        given[key] = value if key in NAMES_OF_TABLES and value.lower() != "none" else literal(value)
    return name.strip(), tuple(given.items()), then.strip()


def literal(text: str) -> Any:
    """Return the number, True, False or None that a string spells, or else the string itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, (int, float)) else text


def build(
    solver: str | Solver,
    *,
    origin: str | None = None,
    steps: int | None = None,
    load: Mapping[Table, Callable[[str | Path], Any]] | None = None,
) -> Solver:
    """Build a solver from a solver string.

    Args:
        solver: Solver string, such as "gms", "er-sde:order=2" or "teleport:until=10 then unipc". A Solver is returned
            unchanged.
        origin: Name of an embedded model, or folder of a model. Statistics and tables that the string does not name are
            looked up there. With None (default), the string must name them.
        steps: Number of steps of the run, which selects the table of a [`GGDM`][gms_fast.solvers.GGDM].
        load: Functions that replace the default readers of statistics and tables. The keys are `CURVES`, `COVARIANCE`
            and `LEARNED` of `gms_fast.solvers.text`. Each function is called with the name or path of the file.

    Returns:
        The [`Solver`][gms_fast.Solver].

    Raises:
        ValueError: If the string is malformed, if it contains an unknown solver or option, or if statistics or a table
            that the solver needs are neither named in the string nor found in `origin`.
        FileNotFoundError: If the string names a file or an embedded model that does not exist.

    Examples:
        >>> gms_fast.solvers.build("er-sde:order=2").order
        2
        >>> gms_fast.solvers.build("teleport then unipc", origin="digits").then.name
        'UniPC'
    """
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise ValueError(f"solver must be a Solver or one of {', '.join(names())}: got {solver!r}")
    name, given, then = parse(solver)
    return of_options(name, given, then, origin=origin, steps=steps, load=load)


def of_options(
    name: str,
    given: Mapping[str, Any],
    then: str = "",
    *,
    origin: str | None = None,
    steps: int | None = None,
    load: Mapping[Table, Callable[[str | Path], Any]] | None = None,
) -> Solver:
    """Build a solver from its name, its options and the string of the solver that follows.

    Statistics and tables are given by name. The other arguments and the errors are those of `build`.
    """
    made, given = kind(name), dict(given)
    text = spelled(name, [f"{option}={value}" for option, value in given.items()], then)
    known = [option for option, _ in options(made)]
    if unknown := given.keys() - set(known):
        listed = ", ".join(sorted(unknown))
        raise ValueError(f"solver {text!r} has no option {listed}: {name} accepts {', '.join(known) or 'none'}")
    if then and made is not Teleport:
        raise ValueError(f'solver must be "teleport" before "then": got {text!r}')
    _check_kinds(text, made, given)
    for option, table in _tables(made, given).items():
        found = given[option] if option in given else _beside(origin, table, steps, name)
        given[option] = (load or {}).get(table, table.load)(found)
    if then:
        given["then"] = build(then, origin=origin, steps=steps, load=load)
    try:
        return made(**given)
    except TypeError as error:
        raise ValueError(f"solver {text!r}: {error}") from error


def _check_kinds(text: str, made: type[Solver], given: dict[str, Any]) -> None:
    """Raise ValueError for a string where an option must be a number or a boolean."""
    for name, wanted in options(made):
        value = given.get(name)
        if wanted and value is not None and not _fits(value, wanted):
            raise ValueError(f"{name} must be {wanted} in solver {text!r}: got {value!r}")


def _fits(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted in (FLAG, EITHER)
    return wanted != FLAG and not isinstance(value, str)


@constants.function
def options(made: type[Solver]) -> list[tuple[str, str]]:
    """Return (name, kind of value) of each option of a solver.

    The kind is `FLAG`, `NUMBER` or `EITHER`, or "" if the value may be any string.
    """
    if not is_dataclass(made):
        return []
    return [(field.name, _wanted(get_args(field.type) or (field.type,))) for field in fields(made) if field.init]


def _wanted(types: tuple[object, ...]) -> str:
    if str in types:
        return ""
    number = int in types or float in types
    return (EITHER if number else FLAG) if bool in types else NUMBER if number else ""


def _tables(made: type[Solver], given: dict[str, Any]) -> dict[str, Table]:
    """Return the statistics and tables that a solver with these options needs, by option."""
    needed = {option: table for (owner, option), table in _TABLES.items() if owner is made}
    if made is GMS and not given.keys() & {"covariance", "switch"}:
        return {}  # it needs one only to draw elements together
    return {option: table for option, table in needed.items() if given.get(option, "") is not None}


def _beside(origin: str | None, table: Table, steps: int | None, name: str) -> str | Path:
    """Return the file of statistics or a table that lies beside a model. Raises ValueError."""
    file = table.file.format(steps=steps)
    found = None if origin is None else named(origin, file) or Path(origin) / file
    if found is None or not found.is_file():
        option = next(option for (_, option), known in _TABLES.items() if known is table)
        where = (
            "the model does not record where it was loaded from"
            if origin is None
            else f"there is no {file} for the model {origin}"
        )
        raise ValueError(f"solver {name} needs {option}={option.upper()}, a file written by {table.command}: {where}")
    return found


def with_tables(text: str, change: Callable[[str], str]) -> str:
    """Return the solver string with changed names of statistics and tables."""
    name, given, then = parse(text)
    changed = {k: change(v) for k, v in given.items() if k in NAMES_OF_TABLES and isinstance(v, str)}
    if not changed and not then:
        return text
    return spelled(name, [f"{k}={v}" for k, v in {**given, **changed}.items()], then and with_tables(then, change))


def spelled(name: str, options: Sequence[str], then: str = "") -> str:
    """Join a name, options and a following solver to a solver string."""
    return name + (":" + ",".join(options) if options else "") + (_THEN + then if then else "")


def text_of(solver: Solver) -> str:
    """Return the solver string from which `build` makes this solver.

    Args:
        solver: Solver whose options are all numbers, strings, booleans or None.

    Returns:
        Solver string with the options that differ from their defaults.

    Raises:
        ValueError: If the class of the solver has no name, or if an option is a table or a function, which a string
            cannot express.

    Examples:
        >>> gms_fast.solvers.text_of(gms_fast.solvers.ERSDE(order=2))
        'er-sde:order=2'
    """
    names_of = {kind: name for name, kind in (_PLAIN | _WITH_TABLES).items()}
    if type(solver) not in names_of:
        raise ValueError(f"solver must be one of {', '.join(names_of.values())}: got {type(solver).__name__}")
    given = {name: getattr(solver, name) for name, _ in options(type(solver))}
    chosen = {name: value for name, value in given.items() if value != getattr(type(solver), name, MISSING)}
    for name, value in chosen.items():
        if not (value is None or isinstance(value, (bool, int, float, str))):
            raise ValueError(
                f"solver must have options that a solver string can express: got {name} = {type(value).__name__}"
            )
    return spelled(names_of[type(solver)], [f"{name}={value}" for name, value in chosen.items()])
