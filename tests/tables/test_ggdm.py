"""Tables of GGDM: file, construction, and bad input."""

import math

import pytest
import torch
from busy_tables import SCHEDULE, busy
from toys import Model

import gms_fast
from gms_fast import solvers
from gms_fast.schedules import Flow, VPCosine, VPLinear
from gms_fast.solvers import DDIM, GGDM, GMS, DPMSolverPP, GGDMTable, Teleport
from gms_fast.statistics import Gaussian
from gms_fast.tables.ggdm import tied


def test_save_and_load(tmp_path):
    table = busy(6)
    table.save(tmp_path / "table.safetensors")
    found = GGDMTable.load(tmp_path / "table.safetensors")
    assert all(torch.equal(getattr(found, n), getattr(table, n)) for n in ("tau", "mu", "sigma", "c", "d"))
    assert found.schedule.config == table.schedule.config
    assert (tmp_path / "table.safetensors").stat().st_size < 5000


def test_a_table_does_not_follow_what_it_was_made_of():
    table = busy(3)
    mu = table.mu.clone()
    known = GGDMTable(SCHEDULE, table.tau, mu, table.sigma, table.c, table.d)
    mu[1] = 7
    assert torch.equal(known.mu, table.mu)


def test_file_of_another_kind(tmp_path):
    path = tmp_path / "g.safetensors"
    Gaussian([0.0, 1.0], torch.eye(2), [1.0, 2.0]).save(path)
    with pytest.raises(ValueError, match="format is"):
        GGDMTable.load(path)
    with pytest.raises(FileNotFoundError, match="no table at"):
        GGDMTable.load(tmp_path / "none")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cut: truncated"):
        GGDMTable.load(tmp_path / "cut")


NET = Model(lambda x, t: 0.3 * x)


def sampled(steps=5, model=NET, table=None, **options):
    return gms_fast.sample(model, steps, solver=GGDM(table or busy(5)), n=2, **options)


def test_another_number_of_steps():
    with pytest.raises(ValueError, match="made for 5 steps, not 10"):
        sampled(10)
    with pytest.raises(ValueError, match="timesteps must be those of the table"):
        sampled(timesteps=[999, 800, 600, 400, 200, 0])
    assert torch.equal(sampled(timesteps=busy(5).times), sampled())


def test_another_schedule():
    with pytest.raises(ValueError, match=r"schedule VPLinear.*, not VPCosine"):
        sampled(schedule=VPCosine())
    sampled(schedule=gms_fast.schedules.VP(VPLinear().betas))  # the same noise levels under another name
    with pytest.raises(ValueError, match="schedule"):
        sampled(schedule=VPLinear(time_shift=1))


def test_another_network():
    own, other = (torch.nn.Linear(4, 4) for _ in range(2))
    table = busy(5)
    known = GGDMTable(*(getattr(table, n) for n in ("schedule", "tau", "mu", "sigma", "c", "d")),
                      network=gms_fast.statistics.fingerprint(own))  # fmt: skip
    call = type("Net", (torch.nn.Module,), {"forward": lambda self, x, t: self.linear(x)})
    for linear, fits in ((own, True), (other, False)):
        net = call()
        net.linear = linear
        known = GGDMTable(*(getattr(table, n) for n in ("schedule", "tau", "mu", "sigma", "c", "d")),
                          network=gms_fast.statistics.fingerprint(net) if fits else known.network)  # fmt: skip
        options = {"model": net, "schedule": SCHEDULE, "shape": (4,), "table": known}
        if fits:
            assert sampled(**options).shape == (2, 4)
        else:
            with pytest.raises(ValueError, match=r"made for network \w{16}, not \w{16}"):
                sampled(**options)


def test_it_has_its_own_times():
    known = Gaussian(torch.zeros(4), torch.eye(4), torch.ones(4))
    with pytest.raises(ValueError, match="times of its table"):
        gms_fast.sample(NET, 5, solver=Teleport(known, 10.0, GGDM(busy(5))), n=2)
    with pytest.raises(ValueError, match="needs all times of its table"):
        gms_fast.sample(NET, 5, solver=Teleport(known, skip=0.4, then=GGDM(busy(5))), n=2)


def test_its_name_says_what_is_missing():
    with pytest.raises(ValueError, match="solver ggdm needs table=TABLE"):
        gms_fast.sample(NET, 5, solver="ggdm")
    assert solvers.kind("ggdm") is GGDM
    with pytest.raises(TypeError, match="table must be a GGDMTable"):
        GGDM("mnist/5")


def changed(**entries):
    table = busy(3)
    given = {name: getattr(table, name).clone() for name in ("tau", "mu", "sigma", "c", "d")}
    for name, (at, value) in entries.items():
        given[name][at] = value
    return GGDMTable(SCHEDULE, **given)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"mu": ((1, 1), 0.1)}, "mu.* must be zero"),
        ({"mu": ((2, 1), 0.1)}, "mu.* must be zero"),
        ({"mu": ((0, 0), 0.1)}, "mu.* must be zero"),
        ({"mu": ((3, 0), 0.5)}, "alpha at the first time"),
        ({"sigma": (3, 0.5)}, "sigma at the first time"),
        ({"sigma": (1, -0.5)}, "sigma must not be negative"),
        ({"tau": (1, 5000.0)}, "tau must be at least two increasing"),
        ({"c": (1, math.nan)}, "c must be finite"),
    ],
)
def test_tables_that_make_no_sense(entries, says):
    with pytest.raises(ValueError, match=says):
        changed(**entries)


def test_other_things_that_make_no_sense():
    table = busy(3)
    with pytest.raises(ValueError, match="c and d must be given together"):
        GGDMTable(SCHEDULE, table.tau, table.mu, table.sigma, c=table.c)
    with pytest.raises(ValueError, match=r"mu must have shape \(4, 4\)"):
        GGDMTable(SCHEDULE, table.tau, table.mu[:3], table.sigma)
    with pytest.raises(TypeError, match="schedule"):
        GGDMTable("linear", table.tau, table.mu, table.sigma)
    with pytest.raises(TypeError, match="solver must be linear"):
        GGDMTable.of(GMS(), SCHEDULE, [999, 500])
    with pytest.raises(ValueError, match="must not use both noise and earlier estimates"):
        GGDMTable.of(DPMSolverPP(sde=True), SCHEDULE, [999, 500, 200, 10])
    with pytest.raises(ValueError, match="alpha > 0"):
        GGDMTable.of(DDIM(), Flow(), [1.0, 0.5])
    with pytest.raises(ValueError, match="times must end before t = 0"):
        GGDMTable.of(DDIM(), SCHEDULE, SCHEDULE.timesteps(5))
    mu = table.mu.clone()
    mu[1] = 0
    with pytest.raises(ValueError, match=r"got a_1 = 0"):
        tied(mu, table.sigma)
    with pytest.raises(ValueError, match=r"got a_1 = 0"):
        GGDMTable(SCHEDULE, table.tau, mu, table.sigma)
