"""Empirical model statistics: curves, what they belong to, and their file."""

import math

import numpy as np
import pytest
import torch
from published_statistics import VECTORS, normal, tensors
from safetensors.torch import load_file, save_file
from torch import nn

from gms_fast import io
from gms_fast.schedules import EDM, Flow, VPContinuous, VPLinear
from gms_fast.statistics import EmpiricalModel, fingerprint, load

pytestmark = pytest.mark.usefixtures("one_thread")


def small(**changes):
    """Return statistics of no network in particular, with N = 4 and samples (2, 3)."""
    lam = torch.linspace(-4, 4, 5, dtype=torch.float64)
    curves = {k: normal(5, 2, 3, seed=i) for i, k in enumerate("lsb")}
    return EmpiricalModel(**{"schedule": EDM(), "lam": lam, **curves, **changes})


@pytest.mark.parametrize("entry", VECTORS["tables"], ids=lambda e: e["ems"])
def test_tables_match_the_published_ones(entry):
    curves = VECTORS["ems"][entry["ems"]]
    statistics = EmpiricalModel(VPContinuous(), *(curves[k] for k in ("lam", "l", "s", "b")))
    wanted = tensors(entry)
    for name, table in statistics.tables._asdict().items():
        torch.testing.assert_close(table[entry["index"]], wanted[name], rtol=0, atol=1e-10)
    for e in entry["E"]:
        got = statistics.moment(e["i_s"], e["i_t"], e["k"])
        torch.testing.assert_close(got, torch.tensor(e["value"], dtype=torch.float64), rtol=0, atol=1e-10)


def test_degenerate_statistics_are_those_of_data_prediction():
    plain = small(network="abc", samples=7).degenerate()
    assert (plain.network, plain.samples) == ("abc", 7)
    L, S, I, B, C = plain.tables
    torch.testing.assert_close(L, (plain.lam + 4)[:, None, None].expand(5, 2, 3))
    assert not S.any()
    assert not B.any()
    assert not C.any()
    assert bool((I.diff(dim=0) > 0).all())


def test_moment_is_the_integral_of_a_power():
    flat = small(l=torch.zeros(1001, 1), s=torch.zeros(1001, 1), b=torch.zeros(1001, 1), lam=np.linspace(0, 1, 1001))
    for k in range(4):
        exact = 0.5 ** (k + 1) / math.factorial(k + 1)
        assert float(flat.moment(200, 700, k)) == pytest.approx(exact, rel=2e-5)


@pytest.mark.parametrize(("i", "j", "k"), [(-1, 2, 1), (2, 2, 1), (3, 2, 1), (0, 5, 1), (0, 4, -1)])
def test_moment_refuses_what_is_no_interval(i, j, k):
    with pytest.raises(ValueError, match="i, j, k"):
        small().moment(i, j, k)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lam": [4.0, 2, 0, -2, -4]}, "lam must be uniform and increasing"),
        ({"lam": [-4.0, -2, 0, 1, 4]}, "lam must be uniform and increasing"),
        ({"lam": [[0.0, 1, 2, 3, 4]]}, "lam must be"),
        ({"lam": [1.0]}, "lam must be"),
        ({"lam": [0.0, 1, 2, math.inf, 4]}, "lam must be finite"),
        ({"l": torch.zeros(4, 2, 3)}, "l must be"),
        ({"s": torch.zeros(5, 3, 2)}, "s must be"),
        ({"b": torch.full((5, 2, 3), math.nan)}, "b must be finite"),
    ],
)
def test_bad_curves_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        small(**change)


def test_a_schedule_must_be_one():
    with pytest.raises(TypeError, match="schedule must be a Schedule: got 'edm'"):
        small(schedule="edm")


def test_statistics_fit_what_they_were_measured_for_alone():
    network = nn.Linear(3, 3)
    statistics = small(network=fingerprint(network))
    statistics.check(model=network, schedule=EDM(), shape=(2, 3))
    statistics.check(model=lambda x, t: x)
    statistics.check()
    small().check(model=network)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), not \(3, 2\)"):
        statistics.check(shape=(3, 2))
    statistics.check(schedule=EDM(sigma_max=70))  # the same noise levels at the same times
    for other in (VPContinuous(), VPLinear(), Flow()):
        with pytest.raises(ValueError, match=r"schedule EDM\(.*\), not .*\), which has other noise levels"):
            statistics.check(schedule=other)
    with pytest.raises(ValueError, match=r"network \w{16}, not \w{16}"):
        statistics.check(model=nn.Linear(3, 3))


def test_file_keeps_everything(tmp_path):
    statistics = small(network="0123456789abcdef", samples=64)
    statistics.save(tmp_path / "new" / "x.safetensors")
    again = EmpiricalModel.load(tmp_path / "new" / "x.safetensors")
    assert torch.equal(again.lam, statistics.lam)
    for name in "lsb":
        torch.testing.assert_close(getattr(again, name), getattr(statistics, name).float().double(), rtol=0, atol=0)
    assert (again.network, again.samples, again.schedule.config) == ("0123456789abcdef", 64, EDM().config)
    assert load(tmp_path / "new" / "x.safetensors").N == 4
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_half_precision_is_for_s_and_b(tmp_path):
    small().save(tmp_path / "x.safetensors", dtype=torch.float16)
    stored = load_file(tmp_path / "x.safetensors")
    kinds = {"lam": torch.float64, "l": torch.float32, "s": torch.float16, "b": torch.float16}
    assert {k: v.dtype for k, v in stored.items()} == kinds
    with pytest.raises(ValueError, match=r"b cannot be stored as torch.float16"):
        small(b=torch.full((5, 2, 3), 1e5)).save(tmp_path / "y.safetensors", dtype=torch.float16)
    assert not (tmp_path / "y.safetensors").exists()


def metadata_of(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("N", "5", "N is 5 by its metadata, but 4 in its curves"),
        ("lambda", "[-4, 5]", "lambda is"),
        ("shape", "[3, 2]", "shape is"),
        ("schedule", '"sigmoid"', "make no sense: schedule must be one of"),
        ("schedule", "{", "make no sense"),
        ("format", "gms_fast empirical statistics 9", "format is"),
        ("network", None, "missing metadata network"),
    ],
)
def test_file_with_wrong_metadata_is_refused(tmp_path, key, value, named):
    path = tmp_path / "x.safetensors"
    small().save(path)
    metadata = {**metadata_of(path), key: value}
    save_file(load_file(path), path, {k: v for k, v in metadata.items() if v is not None})
    with pytest.raises(ValueError, match=f"{path}.*{named}"):
        load(path)


def test_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        load(path)
    small().save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{path}: truncated"):
        load(path)
    save_file({"lam": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="format is None"):
        load(path)


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_embedded_models_bring_their_statistics(name):
    statistics, model = load(name), io.load(name)
    statistics.check(model=model, schedule=model.schedule, shape=model.sample_shape)
    torch.testing.assert_close(statistics.lam[[0, -1]], model.schedule.log_snr([999, 0]), rtol=0, atol=1e-12)
    assert statistics.N >= 100
    mean = statistics.l.flatten(1).mean(1)
    assert float(mean[0]) == pytest.approx(1, abs=0.01)  # all noise
    smooth = mean.unfold(0, 10, 10).mean(1)
    assert bool((smooth.diff() < 0.003).all())  # falling, but for sampling error
    assert smooth[-1] < smooth[0] - 0.1
    assert statistics.tables.S.abs().max() < 50  # of which exponentials are taken
    assert all(bool(table.isfinite().all()) for table in statistics.tables)
