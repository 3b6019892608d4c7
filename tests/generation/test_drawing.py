"""Drawing by index: conditions, decoders, devices short of memory, and whole batches."""

import warnings

import pytest
import torch
from generated import SMALL, Net, fails_at, made

import gms_fast
from bench.faults.kills import content
from gms_fast.generation import drawing
from gms_fast.generation.drawing import Drawing
from gms_fast.generation.shards import FORMS, Cut
from gms_fast.images import grey_levels

pytestmark = pytest.mark.usefixtures("one_thread")
N = SMALL["n"]


def drawn(model=None, n=N, batch_size=4, condition=None, decoder=None, **options):
    asked = {"steps": 2, "solver": "ddpm", "seed": 0, "shape": None, "device": "cpu", "dtype": torch.float32}
    model = Net() if model is None else model
    return Drawing({"model": model, **asked, **options}, model.clip, n, batch_size, condition, decoder)


class Small:
    """Memory of a network that runs out above some number of rows."""

    def __init__(self, most, error=None):
        self.most, self.rows = most, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self, rows):
        self.rows.append(rows)
        if rows > self.most:
            raise self.error


# --- batches ---


def test_network_sees_whole_batches_alone():
    rows = []
    assert drawn(Net(seen=rows.append)).part(range(16, 21)).shape == (5, 1, 4, 4)
    assert set(rows) == {4}


def test_parts_are_what_is_between_their_indices():
    whole, told = drawn().part(range(N)), []
    assert whole.dtype == torch.uint8
    assert whole.device.type == "cpu"
    for first, last in ((0, 8), (8, 12), (4, 20), (20, 21)):
        assert torch.equal(drawn().part(range(first, last), told.append), whole[first:last])
        assert sum(told) == last - first
        told.clear()
    with pytest.raises(ValueError, match="indices must not be empty"):
        drawn().part(range(3, 3))


# --- conditions ---


def brightness():
    return torch.linspace(-0.5, 0.5, N)


def want(values):
    """Images of samples, each with its own brightness, drawn batch by batch."""
    index = torch.arange(24).clamp(max=N - 1).split(4)
    parts = [
        gms_fast.sample(Net(), 2, solver="ddpm", n=4, sample_offset=int(4 * i), condition={"brightness": values[rows]})
        for i, rows in enumerate(index)
    ]
    return grey_levels(torch.cat(parts)[:N])


@pytest.mark.parametrize(
    "condition",
    [{"brightness": brightness()}, lambda index: {"brightness": brightness()[index]}],
    ids=["tensor", "callable"],
)
def test_conditions_go_with_their_samples(condition):
    got = drawn(condition=condition).part(range(N))
    assert torch.equal(got, want(brightness()))
    assert torch.equal(drawn(condition=condition).part(range(8, 16)), got[8:16])
    assert not torch.equal(got, drawn().part(range(N)))


def test_condition_of_all_goes_to_each():
    got = drawn(condition={"brightness": torch.tensor([0.3])}).part(range(N))
    assert torch.equal(got, want(torch.full((N,), 0.3)))


def test_callable_is_given_the_indices_of_whole_batches():
    asked = []

    def condition(index):
        asked.append(index.tolist())
        return {"brightness": torch.zeros(len(index))}

    drawn(condition=condition).part(range(16, N))
    assert asked == [[16, 17, 18, 19], [20, 20, 20, 20]]


def test_conditions_inside_of_others_go_with_their_samples():
    seen = []

    class Nested(Net):
        def forward(self, x, t, added):
            seen.append(added["brightness"].shape)
            return super().forward(x, t, added["brightness"])

    got = drawn(Nested(), condition={"added": {"brightness": brightness()}}).part(range(N))
    assert torch.equal(got, want(brightness()))
    assert {*seen} == {(4,)}


REFUSED = {
    "rows": (
        {"brightness": torch.zeros(20)},
        ValueError,
        r"condition\['brightness'\] must have 21 rows, one per sample",
    ),
    "rows inside": ({"a": {"b": torch.zeros(4)}}, ValueError, r"condition\['a'\]\['b'\] must have 21 .* got \(4,\)"),
    "none": ({"brightness": torch.zeros(0)}, ValueError, "condition"),
    "list": ({"brightness": [0.0] * N}, TypeError, r"condition\['brightness'\] must be a tensor: got list"),
    "array": ({"brightness": brightness().numpy()}, TypeError, "must be a tensor: got ndarray"),
    "tensor": (brightness(), TypeError, "condition must be a dict of keyword arguments for the model: got Tensor"),
    "rows of a callable": (
        lambda i: {"brightness": torch.zeros(21)},
        ValueError,
        r"condition\['brightness'\] .* 4 ",
    ),
    "list of a callable": (
        lambda i: {"brightness": [0.0] * len(i)},
        TypeError,
        "must be a tensor: got list",
    ),
    "tensor of a callable": (lambda i: i / 21, TypeError, "condition must be a dict of .*: got Tensor"),
    "keyword": ({"colour": torch.zeros(N)}, TypeError, "colour"),
    "values": ({"brightness": torch.zeros(N, 2)}, RuntimeError, "must match the size"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_bad_condition_is_refused_before_there_is_a_folder(tmp_path, which):
    condition, error, message = REFUSED[which]
    with pytest.raises(error, match=message):
        made(tmp_path / "x", condition=condition)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("condition", [{"brightness": torch.tensor(0.3)}, {"brightness": torch.zeros(1)}])
def test_condition_without_rows_is_of_all(tmp_path, condition):
    assert made(tmp_path, condition=condition).drawn == N


@pytest.mark.parametrize("condition", [None, {"colour": torch.zeros(N)}, {"brightness": None}, lambda index: {}])
@pytest.mark.parametrize("batch_size", [4, "auto"])
def test_condition_that_the_network_needs_must_be_given(tmp_path, condition, batch_size):
    model = Net()
    model.needed = ("brightness",)
    with pytest.raises(ValueError, match="condition must contain 'brightness', which the model needs"):
        made(tmp_path / "x", model, condition=condition, batch_size=batch_size, shard_size=None)
    assert not (tmp_path / "x" / "run.json").exists()


def test_network_is_tried_with_a_condition_in_a_new_folder_alone(tmp_path):
    condition, rows = {"brightness": brightness()}, []
    made(tmp_path, Net(seen=rows.append), condition=condition)
    assert rows == [4] * (1 + 3 * 6)
    made(tmp_path, Net(seen=fails_at(0)), condition=condition)


def test_condition_is_tried_also_where_memory_runs_out(tmp_path):
    assert made(tmp_path, Net(seen=Small(2)), condition={"brightness": brightness()}).drawn == N


def test_condition_that_a_network_does_not_take_is_an_error():
    with pytest.raises(TypeError, match="colour"):
        drawn(condition={"colour": torch.zeros(N)}).part(range(N))


# --- decoders ---


class Latent(Net):
    """Network of latents, which are not images."""

    sample_shape, clip = (1, 4, 4), None


def decoded(z):
    return torch.tanh(z).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


def test_latents_need_a_decoder(tmp_path):
    with pytest.raises(ValueError, match=r"decoder must be given for this model, because its samples have the ran"):
        made(tmp_path / "x", Latent())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", ["npz", "png"])
def test_pictures_are_those_of_the_decoder(tmp_path, form):
    made(tmp_path, Latent(), decoder=decoded, form=form)
    shards = FORMS[form](tmp_path, Cut(N, 8), (3, 8, 8), "")
    got = drawn(Latent(), decoder=decoded).part(range(8))
    z = [gms_fast.sample(Latent(), 2, solver="ddpm", n=4, sample_offset=i) for i in (0, 4)]
    assert torch.equal(got, grey_levels(decoded(torch.cat(z))))
    with pytest.raises(ValueError, match=r"belongs to the run (\w+), not to ") as error:
        shards.read(0)
    shards.run = str(error.value).partition("to the run ")[2][:16]
    assert torch.equal(shards.read(0)[0], got)
    assert made(tmp_path, Latent(), decoder=decoded, form=form, verify=1).compared == N


# --- memory ---


@pytest.mark.parametrize("most", [3, 2, 1])
def test_network_is_asked_with_half_the_rows_where_memory_runs_out(most):
    small = Small(most)
    got = drawn(Net(seen=small))
    assert torch.equal(got.part(range(N)), drawn().part(range(N)))
    assert got.rows == {3: 2, 2: 2, 1: 1}[most]
    assert small.rows[: small.rows.index(got.rows)] == [4, 2][: small.rows.index(got.rows)]
    assert set(small.rows[small.rows.index(got.rows) :]) == {got.rows}  # no further attempt with more rows


@pytest.mark.parametrize("most", [3, 1])
def test_shards_say_with_how_many_rows_they_were_made(tmp_path, most):
    made(tmp_path / "few", Net(seen=Small(most)))
    made(tmp_path / "all")
    few, whole = content(tmp_path / "few"), content(tmp_path / "all")
    assert few.keys() == whole.keys()
    assert few["run.json"] == whole["run.json"]
    assert all(b'"network_rows": %d' % {3: 2, 1: 1}[most] in few[name] for name in few if name != "run.json")
    assert all(b"network_rows" not in whole[name] for name in whole)


def test_memory_that_a_cpu_has_not_counts_too():
    small = Small(1, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert torch.equal(drawn(Net(seen=small)).part(range(8)), drawn().part(range(8)))


def test_part_whose_memory_runs_out_halfway_is_drawn_anew_with_equal_rows():
    """Equal rows let the part be drawn again in the same way."""
    small, told = Small(4), []

    def seen(rows):
        small.most = 2 if len(small.rows) >= 4 else 4
        small(rows)

    got = drawn(Net(seen=seen))
    assert torch.equal(got.part(range(8), told.append), drawn().part(range(8)))
    assert small.rows[:5] == [4] * 5
    assert small.rows[5:] == [2] * (6 + 2 * 6)  # the second batch, then both again
    assert (got.rows, sum(told)) == (2, 8)


def test_memory_for_not_even_one_is_told(tmp_path):
    with pytest.raises(MemoryError, match="batch_size 4 needs too much memory, even with one sample at a time"):
        made(tmp_path, Net(seen=Small(0)))
    assert content(tmp_path).keys() == {"run.json"}
    assert made(tmp_path).drawn == N


def test_other_errors_of_the_network_are_its_own():
    rows = []

    def seen(count):
        rows.append(count)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        drawn(Net(seen=seen)).part(range(4))
    assert rows == [4]


def test_decoder_is_given_fewer_too():
    rows = []

    def small(z):
        rows.append(len(z))
        if len(z) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decoded(z)

    got = drawn(Latent(), decoder=small).part(range(8))
    assert torch.equal(got, drawn(Latent(), decoder=decoded).part(range(8)))
    assert rows[0] == 4
    assert set(rows[1:]) == {2}


# --- threads and devices ---


def test_a_cpu_computes_with_one_thread_in_the_block():
    torch.set_num_threads(3)
    try:
        with drawing.one_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with drawing.one_thread(torch.device("meta")):
            assert torch.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="broken network"), drawing.one_thread(torch.device("cpu")):
            fails_at(0)(1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_kinds_of_devices_have_names():
    assert drawing.device_kind(torch.device("cpu")).startswith("cpu ")
    assert drawing.device_kind(torch.device("mps", 0)) == "mps"


def test_range_that_is_assumed_is_warned_of_once(tmp_path):
    """Use a network without a range whose images are clipped a lot."""

    class Far(Net):
        clip = property(lambda _: (_ for _ in ()).throw(AttributeError("clip")))

        def forward(self, x, t):
            return super().forward(x, t) - 3

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(tmp_path, Far())
    assert len([w for w in caught if "clip" in str(w.message)]) == 1
