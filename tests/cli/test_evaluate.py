"""Command `evaluate`."""

import pytest
from commands import refusal, run
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")


QUICK = ("--model", "mixture-1d", "--steps", "2,3", "--n", 100, "--ranges", 2, "--workers", 1)


def test_evaluate_writes_records_tables_and_a_plot(tmp_path, capsys):
    out = tmp_path / "run"
    assert run("evaluate", *QUICK, "--solver", "gms:fit=exact", "--solver", "ddim", "--grid", "0.5", "--out", out) == 0
    assert f"12 cells: {out / 'tables.md'}" in capsys.readouterr().out
    assert len((out / "records.jsonl").read_text().splitlines()) == 2 * 2 + 2 * 2 * 2
    table = (out / "tables.md").read_text()
    assert "| `gms:fit=exact` | 0.5 |" in table
    assert "*real against real*" in table
    with Image.open(out / "wasserstein.png") as plot:
        assert plot.size[0] > 300


def test_evaluate_goes_on_or_starts_anew_as_told(tmp_path, capsys):
    command = ("evaluate", *QUICK, "--solver", "ddim", "--out", tmp_path / "run")
    assert run(*command) == 0
    records = (tmp_path / "run" / "records.jsonl").read_text()
    capsys.readouterr()
    assert "is not empty: add --resume" in refusal(capsys, *command)
    (tmp_path / "run" / "records.jsonl").write_text(records[: len(records) // 2])
    assert run(*command, "--resume") == 0
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == len(records.splitlines())
    capsys.readouterr()
    assert "n is 100 there and 200 here" in refusal(capsys, *command, "--n", 200, "--resume")
    assert run(*command, "--n", 200, "--force") == 0


def test_evaluate_force_deletes_its_own_files_only(tmp_path, capsys):
    out = tmp_path / "run"
    command = ("evaluate", *QUICK, "--solver", "ddim", "--out", out)
    assert run(*command) == 0
    (out / "samples").mkdir()
    for mine in (out / "holiday.png", out / "samples" / "thesis.txt"):
        mine.write_text("mine")
    capsys.readouterr()
    assert "holds no settings.json" in refusal(capsys, *command, "--force")  # never among other files
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["holiday.png", "thesis.txt"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--solver", "rk4"), "solver must be a Solver or one of gms"),
        (("--solver", "gms:fit=best"), "fit must be one of"),
        (("--grid", "fast"), "spacing must be"),
        (("--grid", "-1"), "spacing must be"),
        (("--steps", "2000"), "steps must be at most 1000"),
        (("--steps", ""), "--steps must have at least one number"),
        (("--n", "20"), "n must be at least 50 samples for these measures: got 20"),
        (("--model", "digits", "--n", "60"), "n must be at least 65 samples"),
        (("--model", "mnist", "--data", "digits"), "data must be (1, 28, 28) for model mnist: got (1, 8, 8)"),
        (("--model", "nothing-there"), "nothing exists at nothing-there"),
        (
            ("--model", "digits", "--features", "cifar10"),
            "features must be for images (1, 8, 8): cifar10 sees (3, 32,",
        ),
        (("--features", "digits"), "features are for learned models; mixture-1d has its own: got 'digits'"),
    ],
)
def test_evaluate_refuses_bad_input_in_one_line(tmp_path, capsys, options, named):
    assert named in refusal(capsys, "evaluate", *QUICK, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_data_for_a_model_of_ones_own(tmp_path, capsys, model):
    assert "data must be given for model" in refusal(
        capsys, "evaluate", *QUICK, "--model", model, "--out", tmp_path / "r"
    )
