"""Released checkpoint files: recognised by their weights, or refused by name."""

import numpy as np
import places
import pytest
import safetensors.torch
import torch
from tiny_networks import outputs, tiny

from gms_fast import io
from gms_fast.models import released
from gms_fast.schedules import VPCosine, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

VECTORS = places.VECTORS / "gms_unet_checkpoint.npz"
KNOWN = {"num_heads": 4, "image_size": 16}


@pytest.fixture(scope="module")
def vectors():
    with np.load(VECTORS) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}


@pytest.fixture
def weights(vectors):
    return {n.removeprefix("sd/"): w.clone() for n, w in vectors.items() if n.startswith("sd/")}


def check_vectors(model, vectors):
    with torch.no_grad():
        got = model(vectors["x"], vectors["t"])
    for name in ("e1", "e2", "e3"):
        torch.testing.assert_close(getattr(got, name), vectors[name], atol=1e-4, rtol=0)


def test_released_checkpoint_reproduces_its_moments(tmp_path, weights, vectors):
    torch.save(weights, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt", **KNOWN)
    assert model.moments == "raw"
    assert not model.training
    check_vectors(model, vectors)


@pytest.mark.parametrize("container", [None, "ema_model", "ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_checkpoint_is_found_in_its_containers(tmp_path, weights, vectors, container, prefix):
    stored = {prefix + n: w for n, w in weights.items()}
    torch.save({container: stored, "step": 3} if container else stored, tmp_path / "released.pth")
    check_vectors(io.load(tmp_path / "released.pth", **KNOWN), vectors)


def test_released_averaged_weights_come_before_others(tmp_path, weights, vectors):
    noisy = {n: w + 1 for n, w in weights.items()}
    torch.save({"model": noisy, "ema_model": weights}, tmp_path / "released.ckpt")
    check_vectors(io.load(tmp_path / "released.ckpt", **KNOWN), vectors)


def test_released_safetensors_and_npz_are_read(tmp_path, weights, vectors):
    torch.save(weights, tmp_path / "released.bin")
    check_vectors(io.load(tmp_path / "released.bin", **KNOWN), vectors)
    safetensors.torch.save_file(weights, tmp_path / "released.safetensors")
    check_vectors(io.load(tmp_path / "released.safetensors", **KNOWN), vectors)
    np.savez(tmp_path / "released.npz", **{n: w.numpy() for n, w in weights.items()})
    check_vectors(io.load(tmp_path / "released.npz", **KNOWN), vectors)
    check_vectors(io.load(VECTORS, **KNOWN), vectors)


def test_released_double_output_keeps_its_first_channels(tmp_path, weights, vectors):
    for name in ("out.2.weight", "out.2.bias"):
        weights[name] = torch.cat([weights[name], torch.randn_like(weights[name])])
    torch.save(weights, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt", **KNOWN)
    assert model.config["out_channels"] == 6
    check_vectors(model, vectors)


@pytest.mark.parametrize(
    "options",
    [
        {"head": "simple", "channel_mult": (1, 2, 2), "attention_resolutions": (2,), "num_res_blocks": 2},
        {"head": None, "channel_mult": (1, 1, 3), "attention_resolutions": (1, 4), "use_scale_shift_norm": False},
        {"head": "complex", "channel_mult": (2,), "attention_resolutions": (), "in_channels": 3, "out_channels": 6},
        {"head": ("simple", "complex")},
        {"head": ("complex", "simple")},
        {"head": ("complex", None)},
    ],
)
def test_released_architecture_is_inferred_from_the_weights(tmp_path, options):
    model = tiny(**options, schedule=None)
    torch.save(model.state_dict(), tmp_path / "released.pt")
    loaded = io.load(tmp_path / "released.pt", image_size=8)
    assert loaded.config == model.config
    torch.testing.assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)


def test_released_head_of_mode_simple_is_that_of_the_second_moment_alone(tmp_path, weights, vectors):
    """Files of that mode have a simple `out2` and a complex `out3`."""
    generator, channels = torch.Generator().manual_seed(3), len(weights["out.0.weight"])
    shapes = {name: weights[f"out.{name}"].shape for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    simple = {f"out2.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save({n: w for n, w in weights.items() if not n.startswith("out2")} | simple, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt", **KNOWN)
    assert model.config["head"] == ["simple", "complex"]
    with torch.no_grad():
        got, (h, _) = model(vectors["x"], vectors["t"]), model.features(vectors["x"], vectors["t"])
    h = torch.nn.functional.group_norm(h, 32, simple["out2.0.weight"], simple["out2.0.bias"])
    assert h.shape[1] == channels
    e2 = torch.nn.functional.conv2d(
        torch.nn.functional.silu(h), simple["out2.2.weight"], simple["out2.2.bias"], padding=1
    )
    torch.testing.assert_close(got.e2, e2, atol=1e-4, rtol=0)
    for name in ("e1", "e3"):
        torch.testing.assert_close(getattr(got, name), vectors[name], atol=1e-4, rtol=0)


def test_released_file_may_have_the_second_moment_alone(tmp_path, weights, vectors):
    """Files of Extended-Analytic-DPM for SN-DDPM are like this."""
    torch.save({n: w for n, w in weights.items() if not n.startswith("out3")}, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt", **KNOWN)
    with torch.no_grad():
        e1, e2, e3 = model(vectors["x"], vectors["t"])
    assert e3 is None
    torch.testing.assert_close((e1, e2), (vectors["e1"], vectors["e2"]), atol=1e-4, rtol=0)


def test_released_third_moment_without_the_second_is_refused(tmp_path, weights):
    torch.save({n: w for n, w in weights.items() if not n.startswith("out2")}, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"released\.pt: weights have a head for the third moment, .* missing out2"):
        io.load(tmp_path / "released.pt", **KNOWN)


def test_released_defaults_and_overrides(tmp_path, weights):
    torch.save(weights, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt")
    assert (model.config["num_heads"], model.sample_shape, model.config["dropout"]) == (4, (3, 32, 32), 0.0)
    assert float(model.schedule.network_time(999)) == 999
    model = io.load(tmp_path / "released.pt", moments="central", schedule="cosine")
    assert (model.moments, type(model.schedule)) == ("central", VPCosine)
    with pytest.raises(ValueError, match=r"num_heads must divide"):
        io.load(tmp_path / "released.pt", num_heads=5)


@pytest.mark.parametrize("schedule", [VPCosine(T=4000), {"name": "VPCosine", "T": 4000}], ids=type)
def test_released_network_is_asked_at_a_thousand_times_whatever_the_levels(tmp_path, weights, schedule):
    torch.save(weights, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt", schedule=schedule)
    assert float(model.schedule.network_time(3999)) == 999.75
    assert io.load(tmp_path / "released.pt").schedule.rescale_time is True
    said = VPCosine(T=4000, rescale_time=False)
    assert io.load(tmp_path / "released.pt", schedule=said).schedule is said
    assert VPCosine(T=4000).rescale_time is None


def test_override_that_is_no_schedule_is_named(tmp_path, weights):
    torch.save(weights, tmp_path / "released.pt")
    with pytest.raises(TypeError, match="schedule must be a Schedule, its name or its config: got 3"):
        io.load(tmp_path / "released.pt", schedule=3)
    with pytest.raises(ValueError, match=r"schedule must be one of .*: got 'sine'"):
        io.load(tmp_path / "released.pt", schedule="sine")
    assert isinstance(io.load(tmp_path / "released.pt", schedule=None).schedule, VPLinear)


def test_released_missing_and_unexpected_weights_are_listed(tmp_path, weights):
    for name in [n for n in weights if n.startswith("out3") and n != "out3.0.in_layers.0.weight"]:
        del weights[name]
    weights["extra.weight"] = torch.zeros(10, 128)
    torch.save(weights, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"13 missing: out3\.0.*, \.\.\.; 1 unexpected: extra\.weight"):
        io.load(tmp_path / "released.pt", **KNOWN)


def test_released_misshapen_weights_are_named(tmp_path, weights):
    weights["out2.3.bias"] = torch.zeros(4)
    torch.save(weights, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"1 misshapen: out2\.3\.bias is \(4,\), wanted \(3,\)"):
        io.load(tmp_path / "released.pt", **KNOWN)


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.0.0.weight",
        "input_blocks.1.0.emb_layers.1.weight",
        "input_blocks.3.0.in_layers.2.weight",
        "out.2.weight",
    ],
)
def test_released_weight_needed_for_inference_is_named_when_missing(tmp_path, weights, name):
    del weights[name]
    torch.save(weights, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=rf"released\.pt: .*missing {name}"):
        io.load(tmp_path / "released.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
@pytest.mark.parametrize("keep", [0, 1000, -100])
def test_released_truncated_file_is_named(tmp_path, weights, suffix, keep):
    file = tmp_path / f"released{suffix}"
    if suffix == ".pt":
        torch.save(weights, file)
    elif suffix == ".npz":
        np.savez(file, **{n: w.numpy() for n, w in weights.items()})
    else:
        safetensors.torch.save_file(weights, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"released\{suffix} is truncated or not a checkpoint"):
        io.load(file)


def test_class_conditional_files_are_read(tmp_path, weights, vectors):
    """Files have a row for each class and none for the null class."""
    rows = torch.zeros(10, 4 * released.architecture(weights)["model_channels"])
    torch.save(weights | {released.LABELS: rows}, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt", **KNOWN)
    assert (model.no_class, model.config["num_classes"], model.needed) == (None, 10, ("y",))
    with torch.no_grad():
        got = model(vectors["x"], vectors["t"], torch.tensor([9]))
    torch.testing.assert_close(got.e1, vectors["e1"], atol=1e-4, rtol=0)


def test_class_conditional_files_of_guided_diffusion_are_refused_by_name(tmp_path, weights):
    more = {"output_blocks.2.1.in_layers.0.weight": torch.ones(32), released.LABELS: torch.zeros(10, 128)}
    torch.save(weights | more, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"seems to be from a guided-diffusion U-Net"):
        io.load(tmp_path / "released.pt", **KNOWN)


FOREIGN = {  # one weight of each kind of network that others release
    "latent diffusion": "model.diffusion_model.label_emb.0.0.weight",
    "diffusers U-Net": "time_embedding.linear_1.weight",
    "diffusers transformer": "pos_embed.proj.weight",
    "DiT": "x_embedder.proj.weight",
    "EDM": "model.map_layer0.weight",
    "EDM2": "unet.emb_fourier.freqs",
    "denoising-diffusion-pytorch": "online_model.model.init_conv.weight",
    "score-SDE": "module.all_modules.0.W",
    "DDIM": "temb.dense.0.weight",
    "guided-diffusion": "output_blocks.2.1.in_layers.0.weight",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_other_networks_are_told_by_their_weights(tmp_path, kind):
    torch.save({"input_blocks.0.0.weight": torch.ones(1), FOREIGN[kind]: torch.zeros(4, 4)}, tmp_path / "other.pt")
    said = (
        rf"checkpoint \S+other\.pt: seems to be from a.* {kind}( .*)?, judging by .*: build .* gms_fast\.models\.wrap$"
    )
    with pytest.raises(ValueError, match=said):
        io.load(tmp_path / "other.pt")


def test_released_weights_are_of_no_other_network(weights):
    assert released.architecture(weights)["in_channels"] == 3
    for head in (None, "simple", "complex"):
        options = {"channel_mult": (1, 2, 2), "attention_resolutions": (1, 2, 4), "num_res_blocks": 2}
        assert released.architecture(tiny(head=head, **options).state_dict())["head"] == head


def test_pickles_are_said_to_be_of_edm(tmp_path):
    (tmp_path / "edm.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"edm\.pkl seems to be a pickled EDM network: build .*models\.wrap"):
        io.load(tmp_path / "edm.pkl")


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("config.json", '{"_class_name": "UNet2DModel"}', "a diffusers model, UNet2DModel"),
        ("model_index.json", '{"_class_name": "DDPMPipeline"}', "a diffusers pipeline, DDPMPipeline"),
    ],
)
def test_folders_of_diffusers_are_told_by_their_description(tmp_path, file, text, kind):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=f"seems to be {kind}: build .*models.wrap"):
        io.load(tmp_path)


def test_network_of_diffusers_is_told_from_its_folder_and_from_its_file(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    options = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    diffusers.UNet2DModel(sample_size=8, layers_per_block=1, **options).save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(ValueError, match=r"seems to be (a diffusers model|from a diffusers U-Net), .*models\.wrap"):
            io.load(place)


def test_networks_with_a_picture_for_a_condition_are_refused(tmp_path, weights):
    weights["input_blocks.0.0.weight"] = torch.cat([weights["input_blocks.0.0.weight"]] * 2, dim=1)
    torch.save(weights, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"have 6 or 12 output channels for 6 input channels: got 3, .*models\.wrap"):
        io.load(tmp_path / "released.pt", **KNOWN)


def test_released_foreign_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: weights are not those of an improved-DDPM U-Net: .*models\.wrap"):
        io.load(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds no state dict"):
        io.load(tmp_path / "list.pt")
    torch.save(Foreign(), tmp_path / "object.pt")
    with pytest.raises(ValueError, match=r"object\.pt is truncated or not a checkpoint"):
        io.load(tmp_path / "object.pt")
    (tmp_path / "weights.txt").write_text("1")
    with pytest.raises(ValueError, match=r"weights\.txt must end in one of \.pt"):
        io.load(tmp_path / "weights.txt")


class Foreign:
    """An object that only an unsafe unpickler would build."""


def test_units_of_the_heads_are_not_overridden():
    with pytest.raises(ValueError, match="normalised must be True, as in the training of digits: got False"):
        io.load("digits", normalised=False)
