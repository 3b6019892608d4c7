"""Unfinished measurements: they resume where they stopped, and never mix with others."""

import pytest
import torch
from published_statistics import SETTINGS, Mixture, draw
from toys import Model

from gms_fast.measure import work
from gms_fast.schedules import EDM
from gms_fast.statistics import empirical_model, load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("calls", "saved"), [(1, 0), (3, 2), (9, 7)])
def test_interrupted_measurement_goes_on_where_it_was(tmp_path, calls, saved):
    """One call chooses the derivative; each of the five nodes takes one call for l and then two."""
    mixture, data, out = Mixture(EDM()), draw(20), tmp_path / "x.safetensors"
    wanted = empirical_model(mixture, data, **SETTINGS)

    def interrupted(x, t):
        if model.calls > calls:
            raise KeyboardInterrupt
        return mixture(x, t)

    model = Model(interrupted, schedule=EDM(), sample_shape=(2,))
    with pytest.raises(KeyboardInterrupt):
        empirical_model(model, data, out=out, **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors.partial"]
    rest = Model(mixture, schedule=EDM(), sample_shape=(2,))
    got = empirical_model(rest, data, out=out, **SETTINGS)
    assert rest.calls == 16 - saved
    for name in "lsb":
        assert torch.equal(getattr(got, name), getattr(wanted, name))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    torch.testing.assert_close(load(out).s, wanted.s, rtol=1e-6, atol=1e-6)


def test_unfinished_work_is_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "SECONDS", -1.0)
    seen, mixture = [], Mixture(EDM())
    path = tmp_path / "x.safetensors.partial"

    def model(x, t):
        seen.append(path.exists())
        return mixture(x, t)

    empirical_model(
        Model(model, schedule=EDM(), sample_shape=(2,)), draw(20), out=tmp_path / "x.safetensors", **SETTINGS
    )
    assert seen.count(False) == 2  # the choice of the derivative, and the first node
    assert not path.exists()


@pytest.fixture
def unfinished(tmp_path):
    """A path for statistics, with the partial file of an interrupted measurement of 20 samples."""

    def interrupted(x, t):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        empirical_model(
            Model(interrupted, schedule=EDM(), sample_shape=(2,)), draw(20), out=tmp_path / "x.safetensors", **SETTINGS
        )
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 10}, {"window": 3.0}, {"t_min": 0.1}, {"prediction": "v"}])
def test_work_of_another_measurement_is_refused(unfinished, change):
    named = {"t_min": "lambda"}.get(*change, *change)
    with pytest.raises(ValueError, match=rf"(?s)another measurement.*\n  {named}: "):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, **{**SETTINGS, **change})
    with pytest.raises(ValueError, match=r"(?s)another measurement.*\n  data: "):
        empirical_model(Mixture(EDM()), draw(20, seed=1), out=unfinished, **SETTINGS)


def test_files_are_not_overwritten(unfinished):
    with pytest.raises(FileExistsError, match="holds an unfinished measurement"):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, resume=False, **SETTINGS)
    unfinished.with_name("x.safetensors.partial").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, **SETTINGS)
    unfinished.write_bytes(b"something")
    with pytest.raises(FileExistsError, match="already exists"):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, **SETTINGS)
