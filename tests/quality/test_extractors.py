"""Feature networks by name, import path and file, and the input that they are given."""

import zipfile

import pytest
import torch
from feature_networks import Answer, Asked, Seen, half, small

from gms_fast import data
from gms_fast.quality import classifier, extractors

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")
BYTES = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
SIGNED = BYTES / 127.5 - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, net = tmp_path_factory.mktemp("networks"), small().float().eval()
    torch.jit.script(net).save(folder / "scripted.pt")
    torch.jit.trace(net, torch.zeros(2, 3, 8, 8)).save(folder / "traced.pt")
    torch.jit.freeze(torch.jit.script(net)).save(folder / "frozen.pt")
    batches = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=batches)
    torch.export.save(exported, folder / "exported.pt2")
    torch.jit.script(Seen()).save(folder / "seen.pt")
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net, folder / "pickled.pt")
    (folder / "text.pt").write_text("no network")
    return folder


def test_built_in_features_are_those_of_the_classifier():
    images = data.load("digits")[:9]
    found = extractors.load("digits")
    assert torch.equal(found(images), classifier.load("digits").features(images))
    assert found.name == "digits"
    assert found.mark.startswith("digits ")
    assert extractors.load("pixels").mark == "pixels"
    assert torch.equal(extractors.load("pixels")(images), images.flatten(1))
    assert len({extractors.load(name).mark for name in ("pixels", *classifier.SHAPES)}) == 4


@pytest.mark.parametrize("name", ["scripted.pt", "traced.pt", "frozen.pt", "exported.pt2"])
def test_files_of_networks_give_their_features(files, name):
    found, net = extractors.load(files / name), small().float().eval()
    for count in (1, 5):
        x = torch.rand(count, 3, 8, 8) * 2 - 1
        features = found(x)
        assert features.shape == (count, 5)
        assert not features.requires_grad
        torch.testing.assert_close(features, net(x).flatten(1))
    assert found.name == name.partition(".")[0]
    assert found.mark == extractors.load(files / name).mark
    assert "cpu" in str(found.to("cpu").device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("name", ["scripted.pt", "exported.pt2", "feature_networks:small"])
def test_networks_move_to_a_gpu(files, name):
    text = name if ":" in name else files / name
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    on_gpu = extractors.load(text, device="cuda")
    features = on_gpu(x)
    assert features.is_cuda
    torch.testing.assert_close(features.cpu(), extractors.load(text)(x), rtol=0, atol=1e-2)  # TF32 has 10 bits
    assert on_gpu.mark == extractors.load(text).mark
    assert not on_gpu.to("cpu")(x).is_cuda


def test_marks_tell_networks_and_inputs_apart(files):
    every = [extractors.load(files / name).mark for name in ("scripted.pt", "traced.pt", "exported.pt2")]
    every += [extractors.load(files / "scripted.pt", input=i).mark for i in ("[0,1]", "uint8")]
    every += [extractors.load(files / "scripted.pt", channels=3).mark, extractors.load("feature_networks:half").mark]
    assert len(set(every)) == len(every)
    assert every[0] == extractors.load(files / "scripted.pt", input="[-1,1]").mark
    digits = {extractors.load(f"feature_networks:{name}").mark.split()[1] for name in ("half", "small", "shifted")}
    assert len(digits) == 2  # of weights and buffers


@pytest.mark.parametrize(("input", "mean", "most"), [("[-1,1]", -0.6, 1.0), ("[0,1]", 0.2, 1.0), ("uint8", 51.0, 255)])
@pytest.mark.parametrize("given", ["bytes", "floats"])
def test_network_is_given_what_it_takes(files, input, mean, most, given):
    images = torch.full((3, 1, 5, 4), 51, dtype=torch.uint8)
    images[:, :, 0] = 255
    images[:, :, 1:, 0] = 0
    mean = images.double().mean() * (most - (-1 if input == "[-1,1]" else 0)) / 255 + (-1 if input == "[-1,1]" else 0)
    found = extractors.load(files / "seen.pt", input=input)
    features = found(images if given == "bytes" else images / 127.5 - 1)
    wanted = torch.tensor([float(mean), most, 1.0, float(input == "uint8")])
    torch.testing.assert_close(features, wanted.expand(3, 4))


def test_features_are_asked_for_where_a_script_gives_classes(tmp_path):
    torch.jit.script(Asked()).save(tmp_path / "inception.pt")
    found = extractors.load(tmp_path / "inception.pt", input="uint8", channels=3)
    torch.testing.assert_close(found(BYTES), BYTES.float().mean((2, 3)))
    torch.testing.assert_close(found(SIGNED), found(BYTES))
    assert found(BYTES[:, :1]).shape == (2, 3)
    with pytest.raises(ValueError, match="features inception do not take images"):
        extractors.load(tmp_path / "inception.pt", input="[0,1]")(BYTES)


def test_grey_images_are_repeated_where_that_is_asked_for(files):
    grey, net = torch.rand(2, 1, 8, 8), files / "scripted.pt"
    with pytest.raises(ValueError, match=r"features scripted do not take images \(2, 1, 8, 8\) of torch.float32: The "):
        extractors.load(net)(grey)
    asked = extractors.load(net, channels=3)
    assert torch.equal(asked(grey), asked(grey.expand(2, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"features exported do not take images \(2, 1, 8, 8\) .*shape|size"):
        extractors.load(files / "exported.pt2")(grey)


def test_import_paths_give_modules_and_what_makes_them():
    x = torch.rand(2, 3, 8, 8)
    for name in ("network", "Answer"):
        assert torch.equal(extractors.load(f"feature_networks:{name}")(x), x.flatten(1))
    found = extractors.load("feature_networks:small")
    torch.testing.assert_close(found(x), small().float().eval()(x).flatten(1))  # in eval mode, computed in float32
    assert found.name == "feature_networks:small"
    extractors.load("feature_networks:half")
    assert half[0].weight.dtype == torch.float16  # the module of others stays as it is
    assert half.training
    assert extractors.load("torch.nn:Flatten")(x).shape == (2, 192)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inception", "features must be pixels, mnist5k, digits, cifar10, package.module:.* or .*: got 'inception'"),
        ("gone.pt", "features must be pixels, .*: got 'gone.pt'"),
        ("nothing.there:net", "features nothing.there:net cannot be loaded: No module named 'nothing'"),
        ("torch.nn:Nothing", "features torch.nn:Nothing cannot be loaded: module 'torch.nn' has no attribute"),
        ("torch.nn:Linear", "features torch.nn:Linear cannot be loaded: .*missing 2 required positional arguments"),
        ("feature_networks:number", "cannot be loaded: 'int' object is not callable"),
        ("torch:get_num_threads", r"cannot be loaded: it is \d+, wanted a torch module"),
    ],
)
def test_what_is_no_network_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        extractors.load(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.pt", "it holds weights without their network: give that as package.module:attribute"),
        ("pickled.pt", "it holds weights without their network"),
        ("text.pt", "it is not a file of TorchScript or torch.export"),
        ("cut.pt", "it is not a file of TorchScript or torch.export"),
        ("hollow.pt2", "."),
    ],
)
def test_other_files_are_refused_by_name(files, name, message):
    (files / "cut.pt").write_bytes((files / "scripted.pt").read_bytes()[:500])
    with zipfile.ZipFile(files / "hollow.pt2", "w") as archive:
        archive.writestr("x/archive_format", "pt2")
    with pytest.raises(ValueError, match=rf"features .*{name} cannot be loaded: {message}"):
        extractors.load(files / name)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda x: x, r"a tensor \(2, 3, 4, 4\) of torch.float32"),
        (lambda x: x.flatten(), r"a tensor \(96,\)"),
        (lambda x: x[:1].flatten(1), r"a tensor \(1, 48\)"),
        (lambda x: [x.flatten(1), x.flatten(1)], r"\[a tensor"),
        (lambda x: {"pool": x.flatten(1)}, r"\{'pool'"),
        (lambda x: x.flatten(1).long(), r"a tensor \(2, 48\) of torch.int64"),
        (lambda x: None, "None"),
    ],
)
def test_outputs_that_are_no_features_are_refused(make, got):
    found = extractors.Extractor("net", "mark", lambda _: Answer(make))
    with pytest.raises(ValueError, match=rf"features net must give one tensor \(2, D\) or .* of floats: got {got}"):
        found(SIGNED)


@pytest.mark.parametrize("make", [lambda x: x[:, :, :1, :1], lambda x: [x.mean((2, 3))], lambda x: (x.mean((2, 3)),)])
def test_outputs_in_other_wrapping_are_features(make):
    assert extractors.Extractor("net", "mark", lambda _: Answer(make))(SIGNED).shape == (2, 3)


@pytest.mark.parametrize("images", [BYTES.long(), BYTES[0], SIGNED.numpy()])
def test_images_of_other_kinds_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\), uint8 or floats in \[-1, 1\]: got"):
        extractors.load("pixels")(images)


def test_options_are_for_networks_whose_input_is_not_known(files):
    with pytest.raises(ValueError, match=r"input must be one of '\[-1,1\]', '\[0,1\]', 'uint8', or None: got 'bytes'"):
        extractors.load(files / "seen.pt", input="bytes")
    with pytest.raises(ValueError, match="channels must be 3, or None: got 4"):
        extractors.load(files / "seen.pt", channels=4)
    for options in ({"input": "uint8"}, {"channels": 3}):
        with pytest.raises(ValueError, match="input and channels must not be given with mnist5k, whose input is known"):
            extractors.load("mnist5k", **options)
