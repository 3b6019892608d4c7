"""Arithmetic settings of a process, which are part of a run's settings."""

import pytest
import torch
from generated import made

from gms_fast.generation.arithmetic import arithmetic
from gms_fast.ops import dispatch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def precision():
    """Precision settings that a test may change."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_cpu_has_but_what_is_not_ordinary(monkeypatch, precision):
    cpu = torch.device("cpu")
    monkeypatch.setattr(dispatch, "chosen", lambda kind: "cpp")
    assert arithmetic(cpu) == {}
    torch.set_float32_matmul_precision("high")
    assert arithmetic(cpu) == {}
    with torch.autocast("cpu"):
        assert arithmetic(cpu) == {"autocast": "torch.bfloat16"}
    monkeypatch.setattr(dispatch, "chosen", lambda kind: "torch")
    assert arithmetic(cpu) == {"backend": "torch"}


def test_gpu_has_its_precision(monkeypatch, precision):
    monkeypatch.setattr(dispatch, "chosen", lambda kind: "cuda")
    gpu = torch.device("cuda", 1)
    assert arithmetic(gpu) == {"products": "ieee", "convolutions": "tf32"}
    for said, products in (("high", "tf32"), ("highest", "ieee")):
        torch.set_float32_matmul_precision(said)
        assert arithmetic(gpu)["products"] == products
    torch.backends.cudnn.allow_tf32 = False
    assert arithmetic(gpu) == {"products": "ieee", "convolutions": "ieee"}


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has the new names from 2.9 on")
def test_precision_may_be_set_by_its_new_names(monkeypatch, precision):
    """After that, torch refuses to read the old names."""
    monkeypatch.setattr(dispatch, "chosen", lambda kind: "cuda")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert arithmetic(torch.device("cuda")) == {"products": "tf32", "convolutions": "ieee"}


def test_folder_is_not_gone_on_with_in_another_arithmetic(tmp_path):
    made(tmp_path)
    with (
        torch.autocast("cpu"),
        pytest.raises(ValueError, match=r"arithmetic: \{.*\} there, \{'autocast': 'torch.bfloat16'"),
    ):
        made(tmp_path)
    made(tmp_path)
