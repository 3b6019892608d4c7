"""Keywords of the schedulers: levels and times as in diffusers, and solver options."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from diffusers.configuration_utils import register_to_config

from gms_fast import solvers
from gms_fast.integrations.diffusers import levels
from gms_fast.solvers import Solver
from gms_fast.solvers.text import spelled

_OWN = {"levels": None, "grid": None, "network_moments": "raw"}  # keywords that no scheduler of diffusers has
_THEN = "er-sde"  # default solver after a teleport
_Options = dict[str, tuple[str, tuple[Any, ...] | None]]  # keyword: (option, values known here; None: all)
_SAID: dict[str, _Options] = {  # options of solvers, by the keywords that diffusers' own solver has for them
    "dpm-solver++": {
        "solver_order": ("order", (1, 2, 3)),
        "solver_type": ("kind", ("midpoint", "heun")),
        "algorithm_type": ("sde", ("dpmsolver++", "sde-dpmsolver++")),
        "lower_order_final": ("lower_order_final", (True, False)),
    },
    "unipc": {
        "solver_order": ("order", (1, 2, 3, 4)),
        "solver_type": ("variant", ("bh1", "bh2")),
        "lower_order_final": ("lower_order_final", (True, False)),
        "disable_corrector": ("disable_corrector", None),
    },
}


def initialiser(solver: str | None) -> Callable[..., None]:
    """Build `__init__` of a scheduler, for the options of one solver or for a solver by text.

    Options default to None: the solver's own default.
    """
    own = dict.fromkeys(_options(solver)) if solver else {"solver": "er-sde"}
    defaults = {**own, **levels.words(), **_OWN}

    def made(self: Any, **config: Any) -> None:
        if unknown := config.keys() - defaults.keys():
            listed, known = ", ".join(sorted(unknown)), ", ".join(defaults)
            raise TypeError(f"{type(self).__name__} got unexpected keywords {listed}: it accepts {known}")
        self._set_up()

    keyword = inspect.Parameter.KEYWORD_ONLY
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    words = [inspect.Parameter(name, keyword, default=value) for name, value in defaults.items()]
    made.__signature__ = inspect.Signature([first, *words])  # type: ignore[attr-defined]
    return register_to_config(made)


def documented(own: str | None, shared: str | None) -> str | None:
    """Complete the `Args:` of a docstring with the entries of another one, except `solver`."""
    if own is None or shared is None or "Args:" not in own:
        return own
    text, _, behind = inspect.cleandoc(own).partition("\n\nRaises:")
    arguments = inspect.cleandoc(shared).partition("Args:\n")[2].partition("\n\n")[0]
    known = {"solver", *re.findall(r"^    (\w+): ", text, re.MULTILINE)}
    more = [entry for entry in re.split(r"\n(?=    \w)", arguments) if entry.split(":")[0].strip() not in known]
    return "\n".join([text, *more, f"\nRaises:{behind}"])


def adopted(config: Mapping[str, Any], name: str | None, ours: Collection[str]) -> dict[str, Any]:
    """Convert another scheduler's configuration, without the options of another solver.

    `name` is the solver of our scheduler, None for one by text. `ours` are the names of our schedulers; a configuration
    from any other class keeps that class's levels.
    """
    known = dict(config)
    text = known.pop("solver", "")
    said, options, _ = solvers.text.parse(text)
    if known.get("_class_name") not in ours:
        for word in ("levels", "grid"):
            known.pop(word, None)
        known = {**known, **levels.said_by(known)}
    if said and said == name:
        return {**options, **known}
    if said and name is None:
        known["solver"] = text if options else _text(said, known)
    for option in _options(said) if said else ():
        if option not in levels.words():
            known.pop(option, None)
    return known


def _text(name: str, config: Mapping[str, Any]) -> str:
    """Return the text of a named scheduler's solver, with the options that were set."""
    apart = {*config.get("_use_default_values", ()), *levels.words()}
    given = _given(name, {option: value for option, value in config.items() if option not in apart})
    then = given.pop("then", "")
    return spelled(name, [f"{o}={v}" for o, v in given.items() if not isinstance(v, tuple)], then)


def solver_of(name: str | None, config: Mapping[str, Any]) -> Solver:
    """Build the solver of a configuration: by text, or by name and options.

    Options that are left open take the configuration's values for diffusers' own solver of that kind.
    """
    if name is None:
        name, given, _ = solvers.text.parse(config["solver"])
        solver = solvers.build(config["solver"])
    else:
        given = _given(name, config)
        plain = {option: value for option, value in given.items() if option != "then"}
        solver = solvers.text.of_options(name, plain, given.get("then", ""))
    _check(name, config)
    said = {option: value for option, value in _said(name, config).items() if option not in given}
    return replace(solver, **said) if said else solver  # type: ignore[type-var]


def merged(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of diffusers' scheduler to a configuration; drop what remains None."""
    known = {word: value for word, value in config.items() if value is not None}
    return {**dict.fromkeys(_OWN), **defaults, **known}


def filled(name: str | None, config: Mapping[str, Any], solver: Solver, kind: str) -> dict[str, Any]:
    """Add the options that were left open, the solver's name and the class name `kind`."""
    made = {**config, "_class_name": kind}
    if name is not None:
        values = {option: getattr(solver, option) for option in _options(name) if option != "then"}
        plain = {o: v for o, v in values.items() if v is None or isinstance(v, (bool, int, float, str))}
        then = {"then": _THEN} if "then" in _options(name) else {}
        made = {**plain, **then, **made, "solver": name}
    unsaid = [word for word in made.pop("_use_default_values", ()) if word in made]
    return {**made, **({"_use_default_values": unsaid} if unsaid else {})}


def name_of(name: str | None, config: Mapping[str, Any]) -> str:
    """Return the name of a configuration's solver."""
    return name or solvers.text.parse(config["solver"])[0]


def _given(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the solver options that a configuration sets."""
    given = {option: config[option] for option in _options(name) if config.get(option) is not None}
    given = {option: tuple(value) if isinstance(value, list) else value for option, value in given.items()}
    return {"then": _THEN, **given} if name == "teleport" else given


def _check(name: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that diffusers would follow and this solver does not."""

    def refuse(word: str, wanted: str) -> None:
        raise ValueError(f"{word} must be {wanted} for {name}: got {config.get(word)!r}")

    variance = str(config.get("variance_type"))
    if name in ("unipc", "unip") and config.get("predict_x0") is False:
        refuse("predict_x0", "True, because this solver predicts x_0,")
    if name in ("unipc", "unip") and config.get("solver_p") is not None:
        refuse("solver_p", "None, because UniPC has its own predictor,")
    if name == "dpm-solver++" and config.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver"):
        refuse("algorithm_type", "dpmsolver++ or sde-dpmsolver++, which predict x_0,")
    if name == "dpm-solver++" and config.get("euler_at_final") and config.get("final_sigmas_type") == "sigma_min":
        refuse("euler_at_final", "False with final_sigmas_type sigma_min")
    if name == "ddpm" and (variance.startswith("fixed_large") or variance == "learned"):
        refuse("variance_type", "fixed_small, the posterior variance,")
    if name == "ddpm" and variance == "learned_range":
        refuse("variance_type", "fixed_small, the posterior variance (sn-ddpm supports learned_range),")
    if name == "ddim" and config.get("stochastic_sampling"):
        refuse("stochastic_sampling", "False (er-sde and ddim:eta=1 draw noise)")


def _said(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a configuration sets for diffusers' own solver of that kind."""
    if name == "ddim":  # diffusers keeps the network's noise where x_0 is clipped
        return {"clipped_noise": not (config.get("clip_sample") or config.get("thresholding"))}
    said = {}
    for word, (option, known) in _SAID.get(name, {}).items():
        value = config.get(word)
        if value is not None and (known is None or value in known):
            said[option] = tuple(value) if known is None else value
    if "sde" in said:
        said["sde"] = said["sde"] == "sde-dpmsolver++"
    return said


def _options(name: str) -> list[str]:
    """Return the names of a solver's options."""
    return [option for option, _ in solvers.text.options(solvers.kind(name))]
