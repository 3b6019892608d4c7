"""Foreign descriptions of models: within bounds and consistent with the weights, or refused."""

import json

import pytest
import torch
from strange_files import saved

from gms_fast import io
from gms_fast.storage.schema import short

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_size", float("nan"), "it holds NaN, wanted finite numbers"),
        ("dropout", float("nan"), "it holds NaN"),
        ("dropout", 1.5, r"config\.dropout is 1\.5, wanted a finite number in \[0, 1\)"),
        ("out_channels", 0, r"config\.out_channels is 0, wanted an integer from 1"),
        ("image_size", 1e12, r"config\.image_size is 1000000000000\.0, wanted an integer"),
        ("num_res_blocks", 10**6, r"config\.num_res_blocks is 1000000, wanted an integer from 1 to 1000"),
        ("num_res_blocks", True, r"config\.num_res_blocks is True, wanted an integer"),
        ("channel_mult", [1] * 10**5, r"config\.channel_mult is \[1, 1, .*\] of 100000, wanted a list of 1 to 32"),
        ("strange", 1, r"config\.strange is not known, wanted some of image_size"),
        ("head", "other", r"config\.head is 'other', wanted one of None, 'simple', 'complex'"),
    ],
)
def test_description_out_of_bounds_is_named(tmp_path, key, value, said):
    folder = saved(tmp_path, key, value)
    with pytest.raises(ValueError, match=rf"{folder}/config\.json does not describe a model: .*{said}"):
        io.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_res_blocks", 1000),
        ("channel_mult", [1, 2]),
        ("model_channels", 64),
        ("in_channels", 3),
        ("attention_resolutions", []),
        ("use_scale_shift_norm", False),
        ("head", ["simple", "complex"]),
        ("out_channels", 2),
    ],
)
def test_description_of_another_network_than_the_weights_is_named_before_one_is_built(
    tmp_path, key, value, monkeypatch
):
    folder = saved(tmp_path, key, value)
    monkeypatch.setattr(io, "MomentUNet", lambda **_: pytest.fail("a network was built"))
    with pytest.raises(ValueError, match=rf"model\.safetensors does not match config\.json: {key} is "):
        io.load(folder)


@pytest.mark.parametrize("value", [[1, 2, 64], [1, 1]])
def test_resolutions_without_effect_are_no_other_network(tmp_path, value):
    folder = saved(tmp_path, "attention_resolutions", value)
    assert io.load(folder).config["attention_resolutions"] == value


@pytest.mark.parametrize("T", [1e12, 10**12, "1000", None, float("inf")])
def test_schedule_out_of_bounds_is_named(tmp_path, T):
    folder = saved(tmp_path)
    described = json.loads((folder / io.CONFIG).read_text())
    described["schedule"] = {"name": "VPLinear", "T": T}
    (folder / io.CONFIG).write_text(json.dumps(described))
    with pytest.raises(
        ValueError, match=r"config\.json .*: (T must be an integer from 2 to 1000000: got|it holds Inf)"
    ):
        io.load(folder)


@pytest.mark.parametrize("tensor", [torch.zeros((2,) * 20), torch.zeros(1000)], ids=["many axes", "one axis"])
def test_tensors_in_a_message_are_described(tensor):
    assert short([tensor]) == f"[a tensor {tuple(tensor.shape)} of torch.float32]"
    assert short({"a": b"x" * (1 << 20)}).startswith("{'a': b'xxx")
