"""Bytes of tensor files: deterministic, and read as the safetensors library reads them."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from strange_files import same, saved
from written import tiny

import gms_fast
from gms_fast import io
from gms_fast.storage import tensors


def test_the_library_reads_what_is_written(tmp_path):
    values = {
        "a": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
        "b": torch.arange(5),
        "c": torch.ones(3, 1).half().T,
        "d": torch.tensor(2.5, dtype=torch.float64),
        "e": torch.zeros(0, 4, dtype=torch.bfloat16),
        "f": torch.tensor([True, False]),
        "g": torch.arange(3, dtype=torch.uint8),
    }
    tensors.write(tmp_path / "x", values, {"b": "1", "a": "ü\n"})
    found = load_file(tmp_path / "x")
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata().items() >= {"a": "ü\n", "b": "1"}.items()


def test_a_changed_number_is_found(tmp_path):
    tensors.write(tmp_path / "x", {"x": torch.arange(9.0)}, {})
    data = bytearray((tmp_path / "x").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match="it is damaged: its numbers do not match the SHA-256 in its metadata"):
        tensors.load(tmp_path / "x")


def test_equal_runs_give_equal_bytes(tmp_path):
    code = (
        "import sys, torch; from gms_fast import statistics; eye = torch.eye(4)\n"
        "statistics.Gaussian(eye[0], eye, eye[0], range=(0, 1), count=9).save(sys.argv[1])"
    )
    for name in ("one", "other"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_equal_models_give_equal_bytes(tmp_path):
    for name in ("one", "other"):
        gms_fast.save(tiny(), tmp_path / name)
    for file in (io.WEIGHTS, io.CONFIG):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


pytestmark = pytest.mark.usefixtures("one_thread")


def test_own_reader_reads_what_the_library_writes_and_the_library_what_is_written(tmp_path):
    values = {"a": torch.rand(2, 3), "b": torch.rand(4).half(), "c": torch.tensor(7), "d": torch.zeros(0, 2)}
    safetensors.torch.save_file(values, tmp_path / "x", {"said": "é"})
    found, said = tensors.load(tmp_path / "x")
    assert said == {"said": "é"}
    assert all(same(found[name], value) for name, value in values.items())
    tensors.write(tmp_path / "y", values, {})
    assert all(same(w, values[n]) for n, w in safetensors.torch.load_file(tmp_path / "y").items())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            {"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 8]}},
            "'a' lies at bytes 0 to 8, wanted 4000000000",
        ),
        (
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
            "'a' lies at bytes 4 to 8, wanted 4 of them from 0",
        ),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "its tensors have 4 bytes, but 8 follow"),
        ({"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}, "header: a.dtype is 'X', wanted one of 'F64'"),
        (
            {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
            r"header: a.shape\[0\] is 2.0, wanted an integer",
        ),
        ([], "header: it is \\[\\], wanted names"),
    ],
)
def test_headers_that_are_wrong_are_named(tmp_path, header, said):
    folder = saved(tmp_path)
    text = json.dumps(header).encode()
    (folder / io.WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=rf"model\.safetensors is truncated or not a safetensors file: {said}"):
        io.load(folder)
