"""Saved heads: loaded on their own network only, in any dtype of it."""

import pytest
import torch
from strange_networks import OF_PICTURES, convolutional, learned

import gms_fast
from gms_fast import schedules
from gms_fast.models import MomentHeads, saved_heads
from gms_fast.storage import tensors

pytestmark = pytest.mark.usefixtures("one_thread")
X, T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10.0, 900.0])


def heads(network=None, **options):
    network = network or convolutional()
    torch.manual_seed(0)
    return learned(MomentHeads(network, "last", **{**OF_PICTURES, **options}))


def saved(folder, **options):
    model = heads(**options)
    model.record = {"steps": 3, "lr": 1e-3}
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("head", ["complex", "simple"])
@torch.no_grad()
def test_heads_come_back_to_the_bit(tmp_path, head):
    model = saved(tmp_path / "heads", head=head, clip=None, data_std=2.0)
    again = MomentHeads.from_pretrained(tmp_path / "heads", convolutional())
    assert again.config == model.config
    assert again.record == model.record
    assert again.schedule.config == model.schedule.config
    assert all(torch.equal(a, b) for a, b in zip(again(X, T), model(X, T), strict=True))
    assert {p.name for p in (tmp_path / "heads").iterdir()} == {saved_heads.FILE}


def test_file_holds_the_heads_alone(tmp_path):
    model = saved(tmp_path)
    stored, said = tensors.load(tmp_path / saved_heads.FILE)
    assert stored.keys() == model.heads.state_dict().keys()
    assert said["format"] == saved_heads.FORMAT
    saved(tmp_path / "again")
    assert (tmp_path / "again" / saved_heads.FILE).read_bytes() == (tmp_path / saved_heads.FILE).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_network_may_be_loaded_in_a_narrower_dtype(tmp_path, dtype):
    saved(tmp_path)
    narrow = MomentHeads.from_pretrained(tmp_path, convolutional().to(dtype))
    assert gms_fast.sample(narrow, 3, n=1).isfinite().all()


def test_networks_trained_narrow_may_be_widened(tmp_path):
    heads(convolutional().bfloat16()).save_pretrained(tmp_path)
    MomentHeads.from_pretrained(tmp_path, convolutional().bfloat16().float())


def test_another_network_is_refused(tmp_path):
    saved(tmp_path)
    other = convolutional()
    with torch.no_grad():
        other.last.bias[0] += 0.1
    for network in (other, convolutional(channels=1, classes=2)):
        with pytest.raises(
            ValueError, match=r"network must be the one that the heads of .* were trained on: this Conv"
        ):
            MomentHeads.from_pretrained(tmp_path, network)


def test_another_schedule_is_refused(tmp_path):
    saved(tmp_path)
    network = convolutional()
    network.schedule = schedules.VPCosine()
    with pytest.raises(
        ValueError, match=r"schedule must be the one that .* was trained with, VPLinear.*the network has VPCosine"
    ):
        MomentHeads.from_pretrained(tmp_path, network)
    network.schedule = schedules.VPLinear()
    MomentHeads.from_pretrained(tmp_path, network)


class Odd(schedules.VPLinear):
    """A schedule without a config."""

    @property
    def config(self):
        raise NotImplementedError


def test_schedules_without_a_config_come_from_the_network(tmp_path):
    network = convolutional()
    network.schedule = Odd()
    heads(network, schedule=None).save_pretrained(tmp_path)
    assert isinstance(MomentHeads.from_pretrained(tmp_path, network).schedule, Odd)
    with pytest.raises(ValueError, match=r"schedule must be the one that .* was trained with, Odd\(T=1000\): got None"):
        MomentHeads.from_pretrained(tmp_path, convolutional())


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no moment heads at"):
        MomentHeads.from_pretrained(tmp_path, convolutional())
    saved(tmp_path)
    file = tmp_path / saved_heads.FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=f"moment heads {file}: truncated"):
        MomentHeads.from_pretrained(tmp_path, convolutional())
    file.write_bytes(whole[:-9] + b"\x01" + whole[-8:])
    with pytest.raises(ValueError, match="SHA-256"):
        MomentHeads.from_pretrained(tmp_path, convolutional())
    stored, said = tensors.load_open(_written(file, whole))
    for change, message in (
        ({"format": "another"}, "format is 'another', wanted"),
        ({"config": '{"head": "linear"}'}, "config"),
        ({"layout": None, "schedule": None}, "missing metadata schedule"),
    ):
        tensors.write(file, stored, {k: v for k, v in {**said, **change}.items() if v is not None})
        with pytest.raises(ValueError, match=message):
            MomentHeads.from_pretrained(tmp_path, convolutional())
    tensors.write(file, {"x": torch.zeros(1)}, said)
    with pytest.raises(ValueError, match="damaged"):
        MomentHeads.from_pretrained(tmp_path, convolutional())


def _written(file, data):
    file.write_bytes(data)
    return file.open("rb")


def test_heads_that_are_not_finite_are_not_written(tmp_path):
    model = heads()
    with torch.no_grad():
        next(iter(model.head_parameters().values())).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.save_pretrained(tmp_path / "heads")
    assert not (tmp_path / "heads").exists()


def test_scheduler_of_another_training_is_refused(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1}
    network = diffusers.UNet2DModel(**size, **blocks).eval()
    MomentHeads((network, diffusers.DDPMScheduler())).save_pretrained(tmp_path)
    MomentHeads.from_pretrained(tmp_path, (network, diffusers.DDPMScheduler()))
    cosine, velocity = ({"beta_schedule": "squaredcos_cap_v2"}, {"prediction_type": "v_prediction"})
    for options, message in ((cosine, "schedule must be the one"), (velocity, "prediction must be the one")):
        with pytest.raises(ValueError, match=f"{message} that .* was trained with"):
            MomentHeads.from_pretrained(tmp_path, (network, diffusers.DDPMScheduler(**options)))
    assert MomentHeads.from_pretrained(tmp_path, gms_fast.models.wrap(network, schedule="linear")).features


def test_wide_networks_may_be_narrowed(tmp_path):
    heads(convolutional().double()).save_pretrained(tmp_path)
    MomentHeads.from_pretrained(tmp_path, convolutional().double().float())
