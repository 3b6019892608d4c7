"""Solvers from text: what it builds, in every place that takes it, and bad input."""

import re

import pytest
import torch
from toys import Model, polynomial

import gms_fast
from gms_fast import io, schedules, solvers, statistics
from gms_fast.plan import plan
from gms_fast.solvers.text import of_options, with_tables
from gms_fast.storage import embedded
from gms_fast.tables.gaussian import FILE

DIGITS = statistics.load_gaussian("digits")


@pytest.mark.parametrize(
    ("text", "solver"),
    [
        ("gms", solvers.GMS()),
        ("gms:fit=free,weight=0.25", solvers.GMS(fit="free", weight=0.25)),
        ("sn-ddpm:clip_pixel=None", solvers.SNDDPM(clip_pixel=None)),
        ("ddim:eta=1", solvers.DDIM(eta=1)),
        ("dpm-solver++:sde=True, order=3", solvers.DPMSolverPP(sde=True, order=3)),
        ("dpm-solver++:kind=heun", solvers.DPMSolverPP(kind="heun")),
        ("er-sde:noise_scale=er_sde_2", solvers.ERSDE(noise_scale="er_sde_2")),
    ],
)
def test_solver_is_read_from_its_name_and_options(text, solver):
    assert solvers.build(text) == solver
    assert solvers.build(solvers.text_of(solver)) == solver


@pytest.mark.parametrize("name", solvers.names())
def test_text_of_a_plain_solver_is_its_name(name):
    assert solvers.text_of(solvers.build(name)) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eulers", "solver must be a Solver or one of"),
        ("", "solver must be a Solver or one of"),
        (3, "solver must be a Solver or one of"),
        ("gms:fit", "got 'fit' in 'gms:fit'"),
        ("gms:fits=free", "solver 'gms:fits=free' has no option fits: gms accepts fit, "),
        ("gms:fit=best", "fit must be"),
        ("ddim then gms", "must be .teleport. before .then."),
        ("teleport:statistics=digits,until=5", "then must be a solver"),
        ("teleport:statistics=digits,until=5 then ddims", "got 'ddims'"),
        ("teleport:statistics=digits,until=0.4 then ddim", "to skip a fraction of the steps, use skip"),
        (
            "ggdm",
            "ggdm needs table=TABLE, a file written by gms-fast search: the model does not record where it was loaded",
        ),
    ],
)
def test_bad_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        solvers.build(text)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (solvers.GMS(covariance=DIGITS), "got covariance = Gaussian"),
        (solvers.ERSDE(noise_scale=lambda x: x), "got noise_scale = function"),
        (type("Own", (solvers.DDIM,), {})(), "got Own"),
    ],
)
def test_solver_that_text_cannot_say_is_refused(solver, message):
    with pytest.raises(ValueError, match=message):
        solvers.text_of(solver)


def numbers(solver, steps=5):
    return plan(schedules.VPLinear(), None, steps, None, solver)


def test_tables_are_named_or_those_of_the_model():
    schedule = gms_fast.load("digits").schedule
    for named, found in (
        ("teleport:statistics=digits,until=10 then er-sde", "teleport:until=10 then er-sde"),
        ("teleport:skip=0.4,statistics=digits then ddim", "teleport:skip=0.4 then ddim"),
        ("gms:covariance=digits,switch=3", "gms:switch=3"),
        ("dpm-solver-v3:statistics=digits", "dpm-solver-v3"),
    ):
        one, other = solvers.build(named), solvers.build(found, origin="digits")
        assert plan(schedule, None, 5, None, one) == plan(schedule, None, 5, None, other)
    assert solvers.build("gms:fit=exact", origin="digits").covariance is None
    assert solvers.build("ggdm", origin="mnist", steps=5).table.steps == 5
    with pytest.raises(ValueError, match=r"there is no ggdm-7\.safetensors for the model mnist"):
        solvers.build("ggdm", origin="mnist", steps=7)


def test_sample_takes_the_text_of_a_solver_with_the_tables_of_its_model(tmp_path):
    model = gms_fast.load("digits")
    want = gms_fast.sample(model, 4, solver=solvers.Teleport(DIGITS, until=5, then=solvers.DDIM()), n=2)
    assert torch.equal(gms_fast.sample(model, 4, solver="teleport:until=5 then ddim", n=2), want)
    io.save(model, tmp_path / "model")
    copy = gms_fast.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"there is no gaussian\.safetensors for the model"):
        gms_fast.sample(copy, 4, solver="teleport:until=5 then ddim", n=2)
    DIGITS.save(tmp_path / "model" / FILE)
    assert gms_fast.sample(copy, 4, solver="teleport:until=5 then ddim", n=2).isfinite().all()
    with pytest.raises(ValueError, match="the model does not record where it was loaded from"):
        gms_fast.sample(Model(polynomial), 4, solver="teleport:until=5 then ddim", n=2)


def test_plans_are_equal_by_their_numbers_and_found_again():
    solver = solvers.ERSDE(order=2)
    assert numbers(solver) == numbers(solvers.build("er-sde:order=2"))
    assert numbers(solver) is not numbers(solver, 6)
    assert numbers(solver) != numbers(solvers.ERSDE())
    linear = schedules.VPLinear()
    assert plan(linear, None, 5, None, solver) is plan(linear, None, 5, None, solvers.ERSDE(order=2))
    assert plan(linear, None, 5, None, solver) is not plan(linear, None, 5, None, solver.ending(True))


FLAGS = [
    ("dpm-solver++", "lower_order_final"),
    ("dpm-solver++", "denoise"),
    ("unip", "lower_order_final"),
    ("unipc", "corrector"),
]


@pytest.mark.parametrize(("name", "flag"), FLAGS)
def test_flags_are_read_in_any_case(name, flag):
    for said, value in (("true", True), ("False", False), ("FALSE", False)):
        assert getattr(solvers.build(f"{name}:{flag}={said}"), flag) is value
    with pytest.raises(ValueError, match=f"{flag} must be True or False in solver"):
        solvers.build(f"{name}:{flag}=no")


def test_amount_of_noise_is_a_flag_or_a_number():
    for said, value in (("true", True), ("False", False), ("0.5", 0.5), ("2", 2)):
        solver = solvers.build(f"dpm-solver++:sde={said}")
        assert solver.sde == value
        assert solvers.build(solvers.text_of(solver)) == solver
    with pytest.raises(ValueError, match="sde must be True, False or a number in solver"):
        solvers.build("dpm-solver++:sde=no")


def test_flags_of_a_teleport_are_read():
    assert solvers.build("teleport:statistics=digits,until=5,direct=false then ddim").direct is False
    assert solvers.build("teleport:statistics=digits,until=5,direct=true then ddim").direct is True


@pytest.mark.parametrize(
    "text", ["gms:weight=1/3", "ddim:eta=x", "ddim:eta=inf", "ddim:eta={[]:1}", "er-sde:order=[1]"]
)
def test_words_are_no_numbers(text):
    with pytest.raises(ValueError, match=f"must be a number in solver '{re.escape(text)}'"):
        solvers.build(text)


@pytest.mark.parametrize("text", ["er-sde:order=2,order=3", "er-sde:=2", "er-sde:order"])
def test_options_stand_once_with_name_and_value(text):
    with pytest.raises(ValueError, match="solver options must be written as in"):
        solvers.build(text)


def test_names_of_tables_stay_text():
    with pytest.raises(FileNotFoundError, match="nothing exists at 5"):
        solvers.build("ggdm:table=5")
    with pytest.raises(ValueError, match=r"then must be a solver other than Teleport, .*: got Teleport$"):
        solvers.build("teleport:statistics=digits,until=5 then teleport:statistics=digits,until=2 then ddim")


def test_a_text_means_what_the_class_means():
    known = statistics.load("digits")
    assert solvers.build("dpm-solver-v3", origin="digits").trust == solvers.DPMSolverV3(known).trust


def test_table_of_a_run_through_given_times_is_that_of_their_number():
    model = gms_fast.load("mnist")
    times = solvers.load_table("mnist/5").times
    assert torch.equal(
        gms_fast.sample(model, timesteps=times, solver="ggdm", n=1), gms_fast.sample(model, 5, solver="ggdm", n=1)
    )


def test_tables_of_a_text_may_be_renamed():
    change = {"a": "b", "c": "d"}.__getitem__
    assert with_tables("teleport:statistics=a,until=5 then gms:covariance=c", change) == (
        "teleport:statistics=b,until=5 then gms:covariance=d"
    )
    assert with_tables("er-sde:order=2", change) == "er-sde:order=2"
    assert with_tables("gms:covariance=none,fit=free", change) == "gms:covariance=none,fit=free"


def test_options_may_hold_what_a_text_cannot(tmp_path):
    """Use a file whose name has a comma, and a tuple."""
    table = tmp_path / "a,b=c.safetensors"
    table.write_bytes(embedded.named("mnist", "gaussian.safetensors").read_bytes())
    made = of_options("teleport", {"statistics": str(table), "until": 5.0}, "ddim")
    assert isinstance(made.then, solvers.DDIM)
    assert of_options("unipc", {"disable_corrector": (0, 2)}).disable_corrector == (0, 2)
    with pytest.raises(ValueError, match="has no option bogus: ddim accepts eta, clipped_noise"):
        of_options("ddim", {"bogus": 1})
