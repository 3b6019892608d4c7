"""Running feature statistics against statistics of all features, in any order and partition."""

import math

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from gms_fast.quality import extractors, measures, running
from gms_fast.quality.running import KEPT, Running, frechet
from gms_fast.storage import tensors

FAR = [(0.0, 1.0), (1e3, 1e-2)]  # where features lie, and their spread


def features(count, width=6, seed=0, mean=0.0, std=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(width, dtype=torch.float64) + 0.3 * torch.rand(width, width, generator=generator).double()
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix * std + mean


def streamed(x, size=100, start=0, mark="some"):
    found = Running(x.shape[1], mark)
    for part in torch.arange(len(x)).split(size):
        found.update(x[part], part + start)
    return found


def parts_of(x, seed):
    """Return running statistics of a random partition, in random order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    cuts = torch.randint(1, len(x) // 5, (30,), generator=generator).cumsum(0)
    found = []
    for some in order.tensor_split(cuts[cuts < len(x)]):
        found.append(Running(x.shape[1], "some"))
        found[-1].update(x[some], some)
    return found


def oracle(x, y, mean=0.0):
    """Return torchmetrics' distance, with both sets shifted towards zero.

    Its sums of squares need rows near zero; the shift does not change the distance.
    """
    metric = FrechetInceptionDistance(_Wide(x.shape[1])).set_dtype(torch.float64)
    metric.update(y - mean, real=True)
    metric.update(x - mean, real=False)
    return float(metric.compute())


class _Wide(torch.nn.Identity):
    def __init__(self, width):
        super().__init__()
        self.num_features = width


@pytest.mark.parametrize(("mean", "std"), FAR)
@pytest.mark.parametrize("size", [7, 64, 5000])
def test_streamed_distance_is_that_of_all_features(mean, std, size):
    x, y = features(2500, mean=mean, std=std), features(2300, seed=1, mean=mean + std / 4, std=1.2 * std)
    found = frechet(streamed(x, size), streamed(y, size))
    assert found == pytest.approx(measures.frechet_distance(x, y), rel=1e-9)
    assert found == pytest.approx(oracle(x, y, mean), rel=1e-9)


def test_streamed_distance_of_many_features():
    x, y = features(400, 64), features(300, 64, seed=1)
    assert frechet(streamed(x), streamed(y)) == pytest.approx(oracle(x, y), rel=1e-9)


@pytest.mark.parametrize(("mean", "std"), FAR)
def test_merging_in_any_order_and_partition_gives_the_same(mean, std):
    x = features(5000, mean=mean, std=std)
    whole = streamed(x)
    largest = float(whole.covariance.diagonal().max())
    for seed in range(10):
        found = Running.merged(parts_of(x, seed))
        assert found.count == len(x)
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=1e-12 * std)
        torch.testing.assert_close(found.covariance, whole.covariance, rtol=0, atol=1e-12 * largest)
        assert torch.equal(found.index, whole.index)
        assert torch.equal(found.rows, whole.rows)


def test_kept_rows_are_those_of_their_indices_and_uniform():
    """Check that the kept rows belong to their indices and that these are uniform.

    The mean of 2,000 of 10,000 indices has a standard deviation of 10,000/sqrt(12 x 2,000) for any good hash.
    """
    x = features(10_000, 2)
    found = streamed(x)
    assert len(found.index.unique()) == KEPT
    assert torch.equal(found.rows, x[found.index])
    assert abs(float(found.index.double().mean()) - 5000) < 4 * 10_000 / math.sqrt(12 * KEPT)
    assert torch.equal(streamed(x[:KEPT]).index.sort().values, torch.arange(KEPT))


def test_other_distances_are_those_of_the_kept_rows():
    x, y = features(3000), features(2500, seed=1) + 0.2
    one, other = streamed(x), streamed(y)
    found = running.compared(one, other)
    assert found["frechet"] == frechet(one, other)
    assert found["kernel"] == measures.kernel_distance(x[one.index], y[other.index])
    assert (found["precision"], found["recall"]) == measures.precision_recall(x[one.index], y[other.index])


def test_covariance_is_unbiased_and_symmetric():
    x = features(200)
    found = streamed(x)
    torch.testing.assert_close(found.covariance, torch.cov(x.T), rtol=1e-12, atol=1e-14)
    assert torch.equal(found.scatter, found.scatter.T)


def test_features_of_any_float_type_are_counted():
    x = features(100).bfloat16()
    assert torch.equal(streamed(x).rows, streamed(x.double()).rows)
    empty = Running(6)
    empty.update(torch.empty(0, 6), [])
    assert empty.count == 0


@pytest.mark.parametrize(
    ("rows", "index", "error", "message"),
    [
        (torch.zeros(2, 5), [0, 1], ValueError, r"features must be \(N, 6\): got \(2, 5\)"),
        (torch.zeros(6), [0], ValueError, r"features must be \(N, 6\): got \(6,\)"),
        (torch.zeros(2, 6, dtype=torch.int64), [0, 1], TypeError, "features must be a floating-point tensor"),
        ([[0.0] * 6], [0], TypeError, "features must be a floating-point tensor"),
        (torch.full((2, 6), math.nan), [0, 1], ValueError, "features must be finite: 2 of 2 rows"),
        (torch.full((2, 6), math.inf), [0, 1], ValueError, "features must be finite: 2 of 2 rows"),
        (torch.zeros(2, 6), [0], ValueError, r"index must be \(2,\).*: got \(1,\)"),
        (torch.zeros(2, 6), [[0, 1]], ValueError, r"index must be integers \(N,\)"),
        (torch.zeros(2, 6), [0.0, 1.0], ValueError, r"index must be integers \(N,\)"),
        (torch.zeros(2, 6), [0, -1], ValueError, "index must be at least 0: got -1"),
        (torch.zeros(2, 6), [7, 7], ValueError, "index must be new for each image: got 7 twice"),
        (torch.zeros(2, 6), [500, 20], ValueError, "index must be new for each image: 20 was counted before"),
    ],
)
def test_bad_features_are_refused_and_not_counted(rows, index, error, message):
    found = streamed(features(100))
    before = found.scatter.clone()
    with pytest.raises(error, match=message):
        found.update(rows, index)
    assert found.count == len(found.index) == 100
    assert torch.equal(found.scatter, before)


def test_parts_that_share_pictures_are_refused():
    """Refuse parts with common images, even if these are few: some of them are kept rows."""
    x = features(20_000)
    whole, again = streamed(x), streamed(x[4000:4100], start=4000)
    with pytest.raises(ValueError, match=r"index must be new for each image: 40\d\d was counted before"):
        whole.merge(again)
    assert whole.count == 20_000


def test_other_features_are_refused_by_what_differs():
    ours = streamed(features(100), mark="mnist5k 01")
    with pytest.raises(ValueError, match="reference must have the same features: features: 'mnist5k 01' here, 'x' th"):
        frechet(ours, streamed(features(100), mark="x"))
    with pytest.raises(ValueError, match="width: 6 here, 7 there"):
        ours.refuse_other(Running(7, "mnist5k 01"))
    with pytest.raises(ValueError, match="'x' there; width: 6 here, 7 there"):
        ours.merge(Running(7, "x"))
    with pytest.raises(ValueError, match="parts must hold at least one part"):
        Running.merged([])
    with pytest.raises(ValueError, match="width must be an integer of at least 1: got 0"):
        Running(0)


def test_a_covariance_needs_more_pictures_than_features():
    few, many = streamed(features(64, 64)), streamed(features(65, 64))
    for one, other, name in ((few, many, "samples"), (many, few, "reference")):
        with pytest.raises(ValueError, match=f"{name} must have more than 64 rows for a covariance: got 64"):
            frechet(one, other)


def test_measured_takes_data_and_pairs():
    network = extractors.load("pixels")
    images = torch.rand(300, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    found = running.measured(((images[i : i + 70], torch.arange(300)[i : i + 70]) for i in range(0, 300, 70)), network)
    assert (found.count, found.features) == (300, "pixels")
    torch.testing.assert_close(found.covariance, torch.cov(images.double().flatten(1).T), rtol=1e-12, atol=1e-14)
    digits = running.measured("digits", extractors.load("digits"), 500)
    assert (digits.count, digits.width) == (1797, 64)
    assert running.measured([(images, torch.arange(300))], network, progress=True).count == 300
    with pytest.raises(ValueError, match="source must hold images: got none"):
        running.measured([], network)


# --- its file ---


@pytest.mark.parametrize("count", [0, 7, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_file_holds_everything_to_the_bit(tmp_path, count, dtype):
    x = features(count, mean=1e3, std=0.1).to(dtype)
    written = streamed(x)
    written.said = {"shards": ["a.npz", "b.npz"], "counted": [0, 5]}
    written.save(tmp_path / "new" / "x.safetensors")
    read = Running.load(tmp_path / "new" / "x.safetensors")
    assert (read.count, read.width, read.features, read.said) == (count, 6, "some", written.said)
    for name in ("mean", "scatter", "index", "rows"):
        assert torch.equal(getattr(read, name), getattr(written, name)), name
    more = features(50, seed=5)
    for some in (read, written):
        some.update(more, torch.arange(50) + count)
    assert torch.equal(read.scatter, written.scatter)
    assert torch.equal(read.rows, written.rows)


def test_file_is_small(tmp_path):
    """Bound the file: 4 D^2 bytes of the triangle, 8,000 D of float32 rows, and indices as text."""
    streamed(features(2500, 32).float()).save(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size < 4 * 32**2 + 8000 * 32 + 8 * KEPT


def stored(path, **change):
    """Write a file of statistics with changed tensors and metadata."""
    streamed(features(100)).save(path)
    found, said = tensors.load(path)
    for name, value in change.items():
        (found if name in found else said)[name] = value
    said.pop("gms_fast.sha256")
    tensors.write(path, {name: value for name, value in found.items() if value is not None}, said)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "missing tensors mean"),
        ({"mean": torch.zeros(5, dtype=torch.float64)}, r"rest is a tensor \(6,\) of torch.float64, wanted \(5,\)"),
        ({"mean": torch.zeros(6)}, r"mean is a tensor \(6,\) of torch.float32, wanted \(6,\) of torch.float64"),
        ({"mean": torch.full((6,), math.nan, dtype=torch.float64)}, "NaN or infinity in mean"),
        ({"triangle": torch.zeros(20, dtype=torch.float64)}, r"triangle is .*, wanted \(21,\)"),
        ({"triangle": torch.arange(-15.0, 6).double()}, "triangle has a variance below 0: -15"),
        ({"rows": torch.zeros(99, 6)}, r"rows is .*, wanted \(100, 6\)"),
        ({"count": "101"}, "kept has 100 indices, wanted 101 of 101 rows"),
        ({"count": "-1"}, "count is -1, wanted an integer of at least 0"),
        ({"kept": str([0] * 100)}, "index must be new for each image: 0 was counted before"),
        ({"kept": "[-1]"}, r"kept\[0\] is -1, wanted an integer from 0"),
        ({"said": "[1]"}, "said is .*, wanted names with values"),
        ({"features": '"' + "x" * 2000 + '"'}, "features is .*, wanted text"),
        ({"format": "gms_fast gaussian statistics 1"}, "format is 'gms_fast gaussian statistics 1', wanted"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, change, message):
    path = stored(tmp_path / "x.safetensors", **change)
    with pytest.raises(ValueError, match=rf"statistics .*x\.safetensors.*: {message}"):
        Running.load(path)


def test_changed_numbers_and_half_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    streamed(features(100)).save(path)
    whole = path.read_bytes()
    for bad in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"no tensors at all"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"statistics .*x\.safetensors: truncated or not a safetensors file"):
            Running.load(path)
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        Running.load(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="said must be names with values"):
        Running(3, said={"network": torch.nn.Identity()})
