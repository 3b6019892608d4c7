"""Feature statistics of images in one pass: enough for all distances, with bounded memory.

Means and covariances use all rows. Kernel distance, precision and recall use `KEPT` rows, chosen by a hash of the
image's index. So the same rows are chosen in any order of the images and of the merges.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast import data
from gms_fast.measure.moments import Moments
from gms_fast.quality import measures
from gms_fast.quality.extractors import Extractor
from gms_fast.storage import tensors
from gms_fast.storage.reading import metadata, refusing
from gms_fast.storage.schema import Fields, Integer, Listed, Plain, Text, argument, short

KEPT = 2000
FORMAT = "gms_fast running statistics 1"
_INDEX = Integer(0, 2**63 - 1)
_TENSORS = ("mean", "rest", "triangle", "rows")
_METADATA = {
    "features": Text(),
    "count": Integer(0),
    "kept": Listed(_INDEX, KEPT),
    "said": Fields({}, others=Plain()),
}


class Running:
    """Count, mean, scatter and a uniform subsample of features (N, D), read once.

    `moments` covers all rows. `index` (K,) int64 and `rows` (K, D) float64 are those with the smallest hashes, where
    K = min(N, KEPT).

    Args:
        width: Number of features D.
        features: Mark that identifies the features (`quality.extractors`).
        said: Plain values by name that are stored with the file. They change nothing, and merging leaves them alone.
    """

    def __init__(self, width: int, features: str = "unnamed", said: dict[str, Any] | None = None) -> None:
        self.width = argument("width", width, Integer(1))
        self.features = argument("features", features, Text())
        self.said = argument("said", dict(said or {}), _METADATA["said"])
        self.moments = Moments(width)
        self.index = torch.empty(0, dtype=torch.int64, device="cpu")
        self.rows = torch.empty(0, width, dtype=torch.float64, device="cpu")

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.moments.count

    @property
    def mean(self) -> Tensor:
        """Mean (D,), float64."""
        return self.moments.mean

    @property
    def scatter(self) -> Tensor:
        """Sum of (x - mean)(x - mean)^T, (D, D), float64.

        It is exactly symmetric, which a matrix product is not.
        """
        upper = self.moments.scatter.triu()
        return upper + upper.triu(1).T

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D), float64.

        Raises ValueError unless there are more rows than columns.
        """
        measures.check_rows("features", self.count, self.width)
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor, index: Tensor | Sequence[int]) -> None:
        """Add features of images.

        Nothing is added if an error is raised.

        Args:
            features: (n, D), floating point on any device.
            index: Indices (n,) of the images, 0 or more.

        Raises TypeError or ValueError for other shapes and types, NaN and infinity. Also raises ValueError for an index
        that was added before, as far as the kept rows show.
        """
        rows, numbers = _rows(features, self.width), _numbers(index)
        if len(numbers) != len(rows):
            raise ValueError(f"index must be ({len(rows)},), one of each row of features: got {tuple(numbers.shape)}")
        if len(rows):
            self._keep(numbers, rows)
            self.moments.add(rows)

    def merge(self, other: "Running") -> None:
        """Add the rows of other statistics of the same features.

        Raises ValueError if the features differ, or if the rows were added before.
        """
        self.refuse_other(other)
        self._keep(other.index, other.rows)
        self.moments.merge(other.moments)

    @classmethod
    def merged(cls, parts: Iterable["Running"]) -> "Running":
        """Merge parts into new statistics, whose `said` is empty; the parts stay unchanged."""
        parts = list(parts)
        if not parts:
            raise ValueError("parts must hold at least one part: got none")
        total = cls(parts[0].width, parts[0].features)
        for part in parts:
            total.merge(part)
        return total

    def refuse_other(self, reference: "Running") -> None:
        """Raise ValueError that names the mark or width of the features if they differ."""
        pairs = (("features", self.features, reference.features), ("width", self.width, reference.width))
        differ = [
            f"{name}: {short(ours)} here, {short(theirs)} there" for name, ours, theirs in pairs if ours != theirs
        ]
        if differ:
            raise ValueError(f"reference must have the same features: {'; '.join(differ)}")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file of about 4 D^2 + 8,000 D bytes, atomically."""
        narrow = self.rows.float()
        kept = {
            "mean": self.moments.mean,
            "rest": self.moments.rest,
            "triangle": self.moments.scatter[_upper(self.width)],
            "rows": narrow if torch.equal(narrow.double(), self.rows) else self.rows,
        }
        known = {"features": self.features, "count": self.count, "kept": self.index.tolist(), "said": self.said}
        tensors.write_described(path, kept, FORMAT, known)

    @classmethod
    def load(cls, path: str | Path) -> "Running":
        """Load the statistics that `save` wrote, bit for bit.

        Raises ValueError that names the file and what is wrong with it.
        """
        found, stored = tensors.read(Path(path), FORMAT, _TENSORS, _METADATA)
        with refusing(f"statistics {path} are inconsistent", path):
            known = metadata(stored, _METADATA)
            _check_stored(found, known)
            running = cls(len(found["mean"]), known["features"], known["said"])
            running._keep(torch.tensor(known["kept"], dtype=torch.int64, device="cpu"), found["rows"].double())
            moments, upper = running.moments, _upper(running.width)
            moments.count, moments.mean, moments.rest = known["count"], found["mean"], found["rest"]
            moments.scatter[upper] = found["triangle"]
        return running

    def _keep(self, index: Tensor, rows: Tensor) -> None:
        """Keep the rows with the smallest keys; raise ValueError for an index that is there twice."""
        keys, own = _keys(index), _keys(self.index)
        if len(own) == KEPT:
            near = torch.from_numpy(keys <= own[-1])  # equal keys: the same index, refused below
            keys, index, rows = keys[near.numpy()], index[near], rows[near]
        keys = np.concatenate([own, keys])
        order = np.argsort(keys)
        twice = np.flatnonzero(np.diff(keys[order]) == 0)
        places, index = torch.from_numpy(order), torch.cat([self.index, index])
        if len(twice):
            raise ValueError(f"index must be new for each image: {int(index[order[twice[0]]])} was counted before")
        self.index, self.rows = index[places[:KEPT]], torch.cat([self.rows, rows])[places[:KEPT]]


def frechet(samples: Running, reference: Running) -> float:
    """Frechet distance of all rows, by `measures.frechet_of_moments`.

    Raises ValueError if the features differ, or unless both have more rows than columns.
    """
    samples.refuse_other(reference)
    for name, running in (("samples", samples), ("reference", reference)):
        measures.check_rows(name, running.count, running.width)
    # the low-order part of a mean matters for a difference of means far from zero, not for a covariance
    apart = (samples.mean - reference.mean) + (samples.moments.rest - reference.moments.rest)
    return measures.frechet_of_moments(apart, samples.covariance, reference.covariance)


def compared(samples: Running, reference: Running) -> dict[str, float]:
    """Distances from a reference by name.

    "frechet" uses all rows; "kernel", "precision" and "recall" use the kept rows.

    Raises ValueError as `frechet` and the measures of `quality.measures` do.
    """
    found = {"frechet": frechet(samples, reference)}
    found["kernel"] = measures.kernel_distance(samples.rows, reference.rows)
    found["precision"], found["recall"] = measures.precision_recall(samples.rows, reference.rows)
    return found


def measured(
    source: str | Path | Iterable[tuple[Tensor, Tensor]],
    features: Extractor,
    batch_size: int = 256,
    *,
    progress: bool = False,
) -> Running:
    """Compute statistics of the features of all images of a source, one batch at a time.

    Args:
        source: Anything that `data.stream` takes, or pairs of images (b, C, H, W), uint8 or float in [-1, 1], and
            index (b,).
        features: Extractor of `quality.extractors.load`, on the device that computes them.
        batch_size: Images of a batch, if `source` is a path or name.
        progress: Show a progress bar on stderr.

    Raises ValueError as `data.stream`, the features and `Running.update` do, and for a source without images.
    """
    pairs = data.stream(source, batch_size) if isinstance(source, (str, Path)) else source
    running, total = None, pairs.count if isinstance(pairs, data.Stream) else None
    with tqdm(total=total, disable=not progress, unit="image") as bar:
        for images, index in pairs:
            rows = features(images)
            running = running or Running(rows.shape[1], features.mark)
            running.update(rows, index)
            bar.update(len(rows))
    if running is None:
        raise ValueError("source must hold images: got none")
    return running


def _rows(features: Tensor, width: int) -> Tensor:
    """Check features and return them as float64 rows on the CPU."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError(f"features must be a floating-point tensor: got {short(features)}")
    if features.ndim != 2 or features.shape[1] != width:
        raise ValueError(f"features must be (N, {width}): got {tuple(features.shape)}")
    rows = features.detach().cpu().double()
    if bad := int((~rows.isfinite()).any(1).sum()):
        raise ValueError(f"features must be finite: {bad} of {len(rows)} rows hold NaN or infinity")
    return rows


def _numbers(index: Tensor | Sequence[int]) -> Tensor:
    """Check image indices and return them as int64 (N,) on the CPU."""
    numbers = torch.as_tensor(index, device="cpu").detach()
    if numbers.ndim != 1 or (len(numbers) and (numbers.is_floating_point() or numbers.dtype == torch.bool)):
        raise ValueError(f"index must be integers (N,): got {short(numbers)}")
    numbers = numbers.long()
    if len(numbers) and int(numbers.min()) < 0:
        raise ValueError(f"index must be at least 0: got {int(numbers.min())}")
    values, times = numbers.unique(return_counts=True)
    if len(values) < len(numbers):
        raise ValueError(f"index must be new for each image: got {int(values[times > 1][0])} twice")
    return numbers


def _keys(index: Tensor) -> np.ndarray:
    """Return hashes of indices, uint64 and all different.

    They are the mixing function of SplitMix64 (Steele, Lea & Flood 2014).
    """
    z = index.numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _upper(width: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the upper triangle of (D, D), with its diagonal."""
    rows, columns = torch.triu_indices(width, width, device="cpu")
    return rows, columns


def _check_stored(found: dict[str, Tensor], known: dict[str, Any]) -> None:
    """Raise ValueError that names the stored values that contradict each other."""
    width, kept, count = found["mean"].numel(), len(known["kept"]), known["count"]
    shapes = {"mean": (width,), "rest": (width,), "triangle": (width * (width + 1) // 2,), "rows": (kept, width)}
    for name, shape in shapes.items():
        wanted = (torch.float64, torch.float32) if name == "rows" else (torch.float64,)
        if tuple(found[name].shape) != shape or found[name].dtype not in wanted:
            raise ValueError(f"{name} is {short(found[name])}, wanted {shape} of {wanted[0]}")
    if kept != min(count, KEPT):
        raise ValueError(f"kept has {kept} indices, wanted {min(count, KEPT)} of {count} rows")
    diagonal = found["triangle"][[i * width - i * (i - 1) // 2 for i in range(width)]]
    if bool((diagonal < 0).any()):
        raise ValueError(f"triangle has a variance below 0: {float(diagonal.min()):g}")
