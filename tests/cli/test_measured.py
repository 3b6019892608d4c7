"""Existing samples: `evaluate --samples`, and references of `statistics --features`."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import refusal, run

from gms_fast import data
from gms_fast.cli import measured
from gms_fast.quality import extractors, running
from gms_fast.quality.running import Running

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.torch.jit")]


class Wide(torch.nn.Module):
    """Features of an image, as many as Inception's pool3 has."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).repeat(1, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of noisy digits, a reference of digits, and networks in files."""
    made = tmp_path_factory.mktemp("measured")
    noisy = data.load("digits") + 0.3 * torch.randn(1797, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = ((noisy.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    (made / "drawn").mkdir()
    for i, part in enumerate(np.arange(1797).reshape(3, -1)):
        np.savez(made / "drawn" / f"{i}.npz", images=pixels[part], index=part)
    assert run("statistics", "--features", "digits", "--data", "digits", "--out", made / "real.safetensors") == 0
    torch.jit.script(Wide()).save(made / "inception.pt")
    return made


def test_reference_is_the_running_statistics_of_the_data(folder, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    command = ("statistics", "--features", "digits", "--data", folder / "drawn", "--out", out, "--batch-size", 100)
    assert run(*command) == 0
    assert capsys.readouterr().out.startswith("1797 images, 64 features (digits ")
    found, wanted = Running.load(out), running.measured(folder / "drawn", extractors.load("digits"), 100)
    assert torch.equal(found.scatter, wanted.scatter)
    assert "exists: choose another file or add --force" in refusal(capsys, *command)
    assert run(*command, "--force") == 0


def test_distances_are_printed_and_written(folder, tmp_path, capsys):
    samples, reference = folder / "drawn", folder / "real.safetensors"
    command = ("evaluate", "--samples", samples, "--reference", reference, "--features", "digits")
    assert run(*command, "--out", tmp_path / "x.json") == 0
    network = extractors.load("digits")
    wanted = running.compared(running.measured(samples, network), running.measured("digits", network))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"samples: 1,797 of {samples}"
    assert lines[2] == f"Frechet distance (features: digits): {wanted['frechet']:.6g}"
    assert [line.partition(":")[0] for line in lines[3:]] == ["kernel distance", "precision", "recall"]
    written = json.loads((tmp_path / "x.json").read_text())
    assert {name: written[name] for name in wanted} == pytest.approx(wanted)
    assert written["features"] == {"name": "digits", "mark": network.mark, "width": 64}
    assert written["samples"] == {"source": str(samples), "count": 1797, "kept": 1797}
    assert "x.json exists" in refusal(capsys, *command, "--out", tmp_path / "x.json")


@pytest.mark.parametrize("reference", ["digits", "real.safetensors", "drawn-too"])
def test_references_of_every_kind_are_taken(folder, tmp_path, capsys, reference):
    shutil.copytree(folder / "drawn", folder / "drawn-too", dirs_exist_ok=True)
    given = folder / reference if reference != "digits" else reference
    assert run("evaluate", "--samples", folder / "drawn", "--reference", given, "--features", "digits") == 0
    assert "reference: 1,797 of" in capsys.readouterr().out


def test_stored_statistics_need_no_network(folder, capsys):
    real, again = folder / "real.safetensors", shutil.copy(folder / "real.safetensors", folder / "again.safetensors")
    assert run("evaluate", "--samples", real, "--reference", again) == 0
    out = capsys.readouterr().out
    assert "Frechet distance (features: digits " in out
    assert "FID" not in out


def test_a_network_of_ones_own_measures(folder, capsys):
    command = ("evaluate", "--samples", folder / "drawn", "--reference", "digits", "--features")
    assert run(*command, "feature_networks:Answer", "--feature-input", "[0,1]") == 0
    assert "Frechet distance (features: feature_networks:Answer): " in capsys.readouterr().out
    assert run(*command, folder / "inception.pt", "--device", "cpu") == 2  # fewer images than features
    assert "samples must have more than 2048 rows for a covariance: got 1797" in capsys.readouterr().err


def test_only_what_the_user_says_is_inceptions_is_called_fid(folder, capsys, monkeypatch):
    assert measured._called(False, "inception", 50_000) == "Frechet distance (features: inception)"
    assert measured._called(True, "inception", 50_000) == "FID"
    assert measured._called(True, "inception", 10_000) == "FID of 10,000 samples"
    command = ("evaluate", "--samples", folder / "drawn", "--reference", "digits", "--inception", "--features")
    assert "--inception needs the 2048 features of Inception's pool3: got 64" in refusal(capsys, *command, "digits")
    monkeypatch.setattr(measured, "INCEPTION", 64)
    assert run(*command, "digits") == 0
    assert "\nFID of 1,797 samples: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--features", "pixels"), "reference must have the same features: features: 'pixels' here, 'digits "),
        (("--features", "mnist5k"), "reference must have the same features: features: 'mnist5k "),
        (("--features", "digits", "--feature-input", "uint8"), "input and channels must not be given with digits"),
        (("--features", "inception"), "features must be pixels, mnist5k, digits, cifar10, "),
        ((), "--features must be given, unless --samples and --reference are both .safetensors files"),
        (("--features", "digits", "--steps", "5"), "--steps must not be given with --samples"),
        (("--features", "digits", "--n", "50"), "--n must not be given with --samples"),
        (("--features", "digits", "--model", "digits"), "--model must not be given with --samples"),
        (("--features", "digits", "--resume"), "--resume must not be given with --samples"),
        (("--features", "digits", "--out", "x.txt"), "--out must end in .json: got x.txt"),
        (("--features", "digits", "--samples", "gone"), "data must be one of digits, mnist5k, "),
        (("--features", "digits", "--reference", "gone.safetensors"), "no statistics at gone.safetensors"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, capsys, options, named):
    command = ("evaluate", "--samples", folder / "drawn", "--reference", folder / "real.safetensors")
    assert named in refusal(capsys, *command, *options)


def test_options_of_the_other_mode_are_refused(folder, tmp_path, capsys):
    assert "--reference must be given with --samples" in refusal(capsys, "evaluate", "--samples", folder / "drawn")
    for option in ("--reference", "--feature-input", "--device"):
        assert f"{option} must not be given without --samples" in refusal(
            capsys, "evaluate", option, "cpu", "--out", tmp_path / "x"
        )
    assert "--out must be given to evaluate a model" in refusal(capsys, "evaluate", "--steps", "2")
    out = ("--out", tmp_path / "x.safetensors")
    for options in (("--gaussian",), ("--seed", "0"), ("--resume",), ("--nodes", "3"), ("--model", "mnist")):
        named = f"{options[0]} must not be given with --features"
        assert named in refusal(capsys, "statistics", "--features", "pixels", "--data", "digits", *out, *options)
    assert "--data must be given with --features" in refusal(capsys, "statistics", "--features", "pixels", *out)
    named = "--feature-input must not be given without --features"
    assert named in refusal(capsys, "statistics", "--feature-input", "uint8", *out)
    named = "--feature-channels must not be given with --gaussian"
    assert named in refusal(capsys, "statistics", "--gaussian", "--feature-channels", "3", *out)
    assert not (tmp_path / "x.safetensors").exists()


def test_missing_pictures_are_no_sample(folder, tmp_path, capsys):
    (tmp_path / "2.npz").write_bytes((folder / "drawn" / "2.npz").read_bytes())
    refused = refusal(capsys, "evaluate", "--samples", tmp_path, "--reference", "digits", "--features", "digits")
    assert "must hold every image: 1198 are missing, 0 the first" in refused


def test_folder_of_generation_without_pictures_is_its_statistics(tmp_path, capsys):
    for form in ("none", "npz"):
        drawn = (
            "--model",
            "digits",
            "--n",
            70,
            "--steps",
            1,
            "--solver",
            "ddim",
            "--features",
            "pixels",
            "--form",
            form,
        )
        assert run("generate", *drawn, "--out", tmp_path / form) == 0
        said = ("--reference", "digits", "--features", "pixels", "--out", tmp_path / f"{form}.json")
        assert run("evaluate", "--samples", tmp_path / form, *said) == 0
    none, npz = (json.loads((tmp_path / f"{form}.json").read_text()) for form in ("none", "npz"))
    assert none["frechet"] == pytest.approx(npz["frechet"], rel=1e-9)
    assert f"70 of {tmp_path / 'none' / 'measured.safetensors'}" in capsys.readouterr().out
