"""Saved folders and released checkpoint files."""

import json
from pathlib import Path

import numpy as np
import places
import pytest
import safetensors.torch
import torch

from gms_fast import io
from gms_fast.models import released
from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import VPCosine, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

VECTORS = places.VECTORS / "gms_unet_checkpoint.npz"
TINY = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
KNOWN = {"num_heads": 4, "image_size": 16}


def tiny(**options):
    """A small network whose every weight matters: none of the zeros it would start training with."""
    torch.manual_seed(0)
    model = MomentUNet(**{**TINY, "attention_resolutions": (1,), "schedule": VPCosine(T=50), **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def vectors():
    with np.load(VECTORS) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}


@pytest.fixture
def weights(vectors):
    return {n.removeprefix("sd/"): w.clone() for n, w in vectors.items() if n.startswith("sd/")}


def outputs(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, *model.sample_shape, generator=generator), torch.tensor([3.0, 700.0]))


def check_vectors(model, vectors):
    with torch.no_grad():
        got = model(vectors["x"], vectors["t"])
    for name in ("e1", "e2", "e3"):
        torch.testing.assert_close(getattr(got, name), vectors[name], atol=1e-4, rtol=0)


# --- folders ---


@pytest.mark.parametrize("head", [None, "simple", "complex", ("simple", "complex"), ("complex", None)])
def test_load_returns_what_save_wrote(tmp_path, head):
    model = tiny(head=head, moments="central", use_scale_shift_norm=False)
    io.save(model, tmp_path / "m")
    loaded = io.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded.moments == "central"
    assert loaded.schedule.config == model.schedule.config
    assert not loaded.training
    for got, want in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "m", "model.safetensors"]


def test_load_draws_no_random_numbers_and_gives_trainable_weights(tmp_path):
    io.save(tiny(), tmp_path / "m")
    before = torch.get_rng_state()
    model = io.load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad for p in model.parameters())
    outputs_sum = sum(e.sum() for e in model(torch.zeros(1, 1, 8, 8), torch.zeros(1)))
    outputs_sum.backward()


def test_saved_half_precision_is_half_the_size_and_loads_as_float32(tmp_path):
    model = tiny()
    io.save(model, tmp_path / "full")
    io.save(model, tmp_path / "half", dtype=torch.float16)
    full, half = (Path(tmp_path, name, io.WEIGHTS).stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    loaded = io.load(tmp_path / "half")
    assert {w.dtype for w in loaded.state_dict().values()} == {torch.float32}
    for got, want in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(got, want.half().float())


def test_saved_config_says_kind_version_and_schedule(tmp_path):
    io.save(tiny(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["kind"] == "MomentUNet"
    assert config["schedule"] == {"name": "VPCosine", "T": 50, "time_shift": 0, "rescale_time": True}
    assert config["gms_fast"][0].isdigit()


def test_save_replaces_a_saved_model_and_an_empty_folder(tmp_path):
    (tmp_path / "m").mkdir()
    io.save(tiny(), tmp_path / "m")
    io.save(tiny(head=None), tmp_path / "m")
    assert io.load(tmp_path / "m").config["head"] is None


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "beside.txt"])
def test_save_refuses_a_folder_that_is_not_a_saved_model(tmp_path, name):
    target = tmp_path / "m"
    if name == "beside.txt":
        io.save(tiny(), target)
    target.mkdir(exist_ok=True)
    (target / name).write_text("precious")
    with pytest.raises(FileExistsError, match=name):
        io.save(tiny(), target)
    assert (target / name).read_text() == "precious"


def test_save_refuses_a_file(tmp_path):
    (tmp_path / "m").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a saved model"):
        io.save(tiny(), tmp_path / "m")


def test_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    old = tiny()
    io.save(old, tmp_path / "m")
    monkeypatch.setattr(io.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        io.save(tiny(head=None), tmp_path / "m")
    assert io.load(tmp_path / "m").config == old.config
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_save_puts_the_old_model_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    old = tiny()
    io.save(old, tmp_path / "m")
    monkeypatch.setattr(io.atomic, "_put", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        io.save(tiny(head=None), tmp_path / "m")
    assert io.load(tmp_path / "m").config == old.config


def test_save_refuses_another_model_another_dtype_and_weights_that_overflow(tmp_path):
    with pytest.raises(TypeError, match="model must be a MomentUNet: got Linear"):
        io.save(torch.nn.Linear(1, 1), tmp_path / "m")
    with pytest.raises(TypeError, match=r"dtype .* got torch.int8"):
        io.save(tiny(), tmp_path / "m", dtype=torch.int8)
    model = tiny()
    with torch.no_grad():
        model.out[2].bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"not finite as torch.float16: out\.2\.bias"):
        io.save(model, tmp_path / "m", dtype=torch.float16)
    assert not (tmp_path / "m").exists()


def test_load_overrides_win_over_the_stored_configuration(tmp_path):
    io.save(tiny(), tmp_path / "m")
    model = io.load(tmp_path / "m", image_size=16, dropout=0.5, moments="central", schedule="linear")
    assert model.sample_shape == (1, 16, 16)
    assert model.config["dropout"] == 0.5
    assert model.moments == "central"
    assert isinstance(model.schedule, VPLinear)


def unsaid(folder):
    """Make the folder what it was before schedules had `rescale_time`: all networks were asked at 1000 t/T."""
    config = json.loads((folder / io.CONFIG).read_text())
    del config["schedule"]["rescale_time"]
    (folder / io.CONFIG).write_text(json.dumps(config))


def test_stored_network_is_asked_at_the_times_it_was_trained_at(tmp_path):
    for name, said in (("new", False), ("scaled", True), ("plain", None), ("old", None)):
        io.save(tiny(schedule=VPCosine(T=50, rescale_time=said)), tmp_path / name)
    unsaid(tmp_path / "old")
    for name, scale in (("new", 1), ("scaled", 20), ("plain", 20), ("old", 20)):
        model = io.load(tmp_path / name)
        assert float(model.schedule.network_time(49)) == 49 * scale
        io.save(model, tmp_path / "again")
        assert float(io.load(tmp_path / "again").schedule.network_time(49)) == 49 * scale
        again = io.load(tmp_path / name, schedule=VPLinear(T=100))
        assert float(again.schedule.network_time(99)) == (99 if scale == 1 else 990)
    for said, time in ((True, 990), (False, 99)):
        model = io.load(tmp_path / "new", schedule=VPLinear(T=100, rescale_time=said))
        assert float(model.schedule.network_time(99)) == time


def test_load_names_unknown_overrides_and_places_where_nothing_is(tmp_path):
    with pytest.raises(TypeError, match="unknown overrides heads: wanted some of"):
        io.load(tmp_path, heads=3)
    with pytest.raises(FileNotFoundError, match=r"one of mnist, .* nothing is at cifar"):
        io.load("cifar")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        io.load(tmp_path)


def test_load_says_that_the_embedded_model_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_embedded_folder", lambda name: tmp_path / name)
    assert io.embedded() == []
    with pytest.raises(FileNotFoundError, match="'mnist' is missing from this installation"):
        io.load()
    io.save(tiny(), tmp_path / "mnist")
    assert io.embedded() == ["mnist"]
    assert io.load().sample_shape == (1, 8, 8)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "Other"}', '{"kind": "MomentUNet"}'])
def test_load_names_a_foreign_config(tmp_path, text):
    io.save(tiny(), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"m/config\.json does not describe a model"):
        io.load(tmp_path / "m")


@pytest.mark.parametrize("keep", [0, 100, -5])
def test_load_names_truncated_weights(tmp_path, keep):
    io.save(tiny(), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        io.load(tmp_path / "m")


# --- released files ---


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
    """As those of Extended-Analytic-DPM, for SN-DDPM."""
    torch.save({n: w for n, w in weights.items() if not n.startswith("out3")}, tmp_path / "released.pt")
    model = io.load(tmp_path / "released.pt", **KNOWN)
    with torch.no_grad():
        e1, e2, e3 = model(vectors["x"], vectors["t"])
    assert e3 is None
    torch.testing.assert_close((e1, e2), (vectors["e1"], vectors["e2"]), atol=1e-4, rtol=0)


def test_released_third_moment_without_the_second_is_refused(tmp_path, weights):
    torch.save({n: w for n, w in weights.items() if not n.startswith("out2")}, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"released\.pt: weights have a head of the third moment, .* missing out2"):
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
    with pytest.raises(TypeError, match="schedule must be a schedule, its name or its config: got 3"):
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
    with pytest.raises(ValueError, match=rf"released\{suffix} is truncated or no checkpoint"):
        io.load(file)


@pytest.mark.parametrize("more", [{}, {"output_blocks.2.1.in_layers.0.weight": torch.ones(32)}], ids=len)
def test_class_conditional_files_are_refused_by_name(tmp_path, weights, more):
    """Those of guided-diffusion, whose residual blocks also change the resolution, too."""
    torch.save(weights | more | {"label_emb.weight": torch.zeros(10, 128)}, tmp_path / "released.pt")
    with pytest.raises(
        ValueError, match=r"class-conditional: label_emb\.weight is not .*models\.wrap\(network, y=labels"
    ):
        io.load(tmp_path / "released.pt", **KNOWN)


FOREIGN = {  # one weight each of what others release
    "latent diffusion": "model.diffusion_model.label_emb.0.0.weight",
    "U-Net of diffusers": "time_embedding.linear_1.weight",
    "transformer of diffusers": "pos_embed.proj.weight",
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
    said = rf"checkpoint \S+other\.pt: seems to be of a.* {kind}( .*)?, by its .*: build .* gms_fast\.models\.wrap$"
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
        ("config.json", '{"_class_name": "UNet2DModel"}', "a model of diffusers, UNet2DModel"),
        ("model_index.json", '{"_class_name": "DDPMPipeline"}', "a pipeline of diffusers, DDPMPipeline"),
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
        with pytest.raises(ValueError, match=r"seems to be (a model|of a U-Net) of diffusers, .*models\.wrap"):
            io.load(place)


def test_networks_with_a_picture_for_a_condition_are_refused(tmp_path, weights):
    weights["input_blocks.0.0.weight"] = torch.cat([weights["input_blocks.0.0.weight"]] * 2, dim=1)
    torch.save(weights, tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"have 6 or 12 output channels for 6 of the input: got 3, .*models\.wrap"):
        io.load(tmp_path / "released.pt", **KNOWN)


def test_released_foreign_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: weights are not those of an improved-DDPM U-Net: .*models\.wrap"):
        io.load(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds no state dict"):
        io.load(tmp_path / "list.pt")
    torch.save(Foreign(), tmp_path / "object.pt")
    with pytest.raises(ValueError, match=r"object\.pt is truncated or no checkpoint"):
        io.load(tmp_path / "object.pt")
    (tmp_path / "weights.txt").write_text("1")
    with pytest.raises(ValueError, match=r"weights\.txt must end in one of \.pt"):
        io.load(tmp_path / "weights.txt")


class Foreign:
    """Something that only an unsafe unpickler would build."""


def test_units_of_the_heads_are_not_overridden():
    with pytest.raises(
        ValueError, match="normalised is how the heads of digits were trained: it cannot be other than True"
    ):
        io.load("digits", normalised=False)
