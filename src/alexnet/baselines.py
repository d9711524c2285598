"""What the paper was compared with in Table 1: Fisher vectors and sparse coding of descriptors.

Both read the same two kinds of dense descriptors, SIFT and local colours, and average two linear
classifiers, as the methods of 2010 and 2011 averaged several. Fisher vectors: PCA to 64, places
appended, a mixture of Gaussians, signed roots and unit length (Perronnin, Sanchez, Mensink 2010;
Sanchez and others 2012 for the places). Sparse coding: a learned dictionary, orthogonal matching
pursuit, positive and negative entries apart (Coates, Ng 2011), and max pooling over a spatial
pyramid (Yang, Yu, Gong, Huang 2009, of absolute values of l1-penalised codes). What is free is
chosen on a held-out tenth of the training pictures. Needs the extra `baselines` (OpenCV,
scikit-learn).
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.dataset import PackedDataset, Split
from alexnet.errors import UserError
from alexnet.log import duration
from alexnet.metrics import count_errors
from alexnet.randomness import permutation

Reals = NDArray[np.float32]
Say = Callable[[str], None]

SMALLEST_PX = 64  # pictures are enlarged to it: a patch of SIFT needs some pixels
# Sides of the descriptors' patches in pixels, up to half of the picture; SIFT has 4 x 4 cells.
PATCHES_PX = (16, 24, 32, 48, 64, 96, 128)
STEP_PX = 4  # of the grid of descriptors; larger pictures have 32 steps across
COLOUR_CELLS = 4
PCA_DIMENSIONS = 64
SAMPLED = 100_000  # descriptors that a code book is made from
BLOCK_PICTURES = 128
TUNING_PICTURES = 2000
ATOMS = 512
VERSION = 2  # of the methods below: a change of them is another run
# By method, what is chosen on held-out pictures: Gaussians of the mixture, atoms of a code.
TRIED = {"sift-fisher": (64, 128), "sparse-coding": (5, 10)}
SHORTEST = 1e-3  # what is new in an atom; two may be the same
CODED_AT_ONCE = 1024  # descriptors whose codes stay in the cache of a core
PYRAMID = (1, 2, 4)
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C of the linear classifiers, rising
CODEBOOK_STRENGTH = 10.0  # while code books are compared
DICTIONARY_SAMPLES, DICTIONARY_BLOCK, DICTIONARY_PASSES = 30_000, 2048, 2
DICTIONARY_MEMORY = 0.9  # what the sums over earlier blocks still count
PLACE_DEVIATION = 0.29  # of numbers drawn evenly from 0..1
METHODS = tuple(TRIED)
TOLD_EVERY_SECONDS = 5.0


def measure(
    dataset: PackedDataset,
    method: str,
    *,
    seed: int,
    tried: Sequence[int],
    say: Say,
    threads: int = 0,
) -> dict[str, Any]:
    """Train a baseline on `train`, tuned on a tenth of it, and count its errors on `val`.

    `tried`: see TRIED; `threads`: 0 for all cores. Raises UserError without the packages of the
    extra.
    """
    _check_packages()
    assert method in METHODS, method
    with _limited(threads):
        return _measure(dataset, method, seed, tried, say)


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """Two processes that share the cores would else wait for one another most of the time."""
    if not threads:
        yield
        return
    import cv2
    from threadpoolctl import threadpool_limits

    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def _measure(
    dataset: PackedDataset, method: str, seed: int, tried: Sequence[int], say: Say
) -> dict[str, Any]:
    began = time.perf_counter()
    train, val = dataset.splits["train"], dataset.splits["val"]
    order = permutation(seed, "baseline: held out", 0, len(train))
    cut = max(1, len(train) // 10)
    learn = np.sort(order[cut : cut + TUNING_PICTURES])
    held_out = np.sort(order[:cut][: TUNING_PICTURES // 3])
    total: Reals | None = None
    tuned = {}
    for kind, describe in (("sift", dense_sift), ("colour", dense_colours)):
        tell = _telling(say, f"{kind}: ")
        some = _sample(describe, train.images[learn], seed)
        codebooks = [_codebook(method, *some, setting, seed) for setting in tried]
        codebook = _best(codebooks, describe, train, learn, held_out, tell)
        (coded,) = _encode([codebook], describe, train.images, tell)
        strength, missed = _tuned_strength(coded, train.labels, order, cut)
        tell(f"C = {strength:g} misses {missed:.1%} of held-out pictures")
        classifier = _Classifier().fit(strength, coded, train.labels).model
        (unseen,) = _encode([codebook], describe, val.images, tell)
        scores = classifier.predict_proba(unseen)
        tuned[kind] = {**codebook.setting, "C": strength, "held_out_error": missed}
        aligned = np.zeros((len(val), len(dataset.class_names)), np.float32)
        aligned[:, classifier.classes_] = scores
        total = aligned if total is None else total + aligned
        tuned[kind]["val_wrong"] = count_errors(aligned, val.labels).top1_wrong
    assert total is not None
    found = count_errors(total, val.labels)
    counts = {"images": found.images, "top1_wrong": found.top1_wrong}
    return {
        "errors": {"val/1": {**counts, "top5_wrong": found.top5_wrong}},
        "tuned": tuned,
        "training_pictures": len(train),
        "minutes": round((time.perf_counter() - began) / 60, 2),
    }


def _telling(say: Say, before: str) -> Say:
    return lambda text: say(before + text)


def _check_packages() -> None:
    try:
        import cv2  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the baselines need {error.name}: pip install 'alexnet[baselines]'"
        ) from None


# --- Dense descriptors ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """Descriptors of pictures: vectors float32 (N, T, D), and their places (T, 2) in 0..1."""

    vectors: Reals
    places: Reals


Describe = Callable[[NDArray[np.uint8]], Described]


def grid(px: int) -> list[tuple[float, float, float]]:
    """(x, y, side of the patch) of every descriptor of a picture; patches lie inside it."""
    step, found = max(STEP_PX, px / 32), []
    for side in (side for side in PATCHES_PX if side <= px / 2):
        places = np.arange(side / 2, px - side / 2 + 1e-6, step)
        found += [(float(x), float(y), float(side)) for y in places for x in places]
    return found


def _enlarged(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    import cv2

    px = images.shape[1]
    if px >= SMALLEST_PX:
        return list(images)
    size = (SMALLEST_PX, SMALLEST_PX)
    return [cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in images]


def dense_sift(images: NDArray[np.uint8]) -> Described:
    """OpenCV's upright SIFT on the grid, as roots of shares: uint8 (N, S, S, 3) -> (N, T, 128)."""
    import cv2

    pictures = _enlarged(images)
    px = pictures[0].shape[0]
    points = grid(px)
    # OpenCV's patch is 4 cells of 1.5 times a key point's size.
    keys = [cv2.KeyPoint(x, y, side / 6, 0.0) for x, y, side in points]
    sift: Any = cv2.SIFT_create()  # type: ignore[attr-defined,unused-ignore]
    vectors = np.empty((len(pictures), len(keys), 128), np.float32)
    for row, picture in enumerate(pictures):
        _, found = sift.compute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), keys)
        vectors[row] = found
    vectors /= np.maximum(vectors.sum(2, keepdims=True), 1e-6)
    return Described(np.sqrt(vectors), _places(points, px))


def dense_colours(images: NDArray[np.uint8]) -> Described:
    """Mean and deviation of each colour in 4 x 4 cells of each patch: (N, T, 96).

    The local colour statistics that went with SIFT in the Fisher vectors of 2010.
    """
    pictures = np.stack(_enlarged(images)).astype(np.float32) / 255
    px = pictures.shape[1]
    points = grid(px)
    sums = [_integral(picture) for picture in (pictures, pictures**2)]  # (N, px + 1, px + 1, 3)
    vectors = np.empty((len(pictures), len(points), COLOUR_CELLS**2, 6), np.float32)
    for number, (x, y, side) in enumerate(points):
        edges_x = np.rint(np.linspace(x - side / 2, x + side / 2, COLOUR_CELLS + 1)).astype(int)
        edges_y = np.rint(np.linspace(y - side / 2, y + side / 2, COLOUR_CELLS + 1)).astype(int)
        area = np.diff(edges_y)[:, None, None] * np.diff(edges_x)[None, :, None]
        mean, square = (_cells(table, edges_y, edges_x) / area for table in sums)
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        cells = np.concatenate([mean, deviation], axis=3)  # (N, 4, 4, 6)
        vectors[:, number] = cells.reshape(len(pictures), COLOUR_CELLS**2, 6)
    return Described(vectors.reshape(len(pictures), len(points), -1), _places(points, px))


def _integral(pictures: NDArray[np.floating]) -> NDArray[np.float64]:
    table = np.pad(pictures.astype(np.float64), ((0, 0), (1, 0), (1, 0), (0, 0)))
    return table.cumsum(1).cumsum(2)


def _cells(table: NDArray[np.float64], ys: Any, xs: Any) -> NDArray[np.float64]:
    corners = table[:, ys][:, :, xs]
    cells: NDArray[np.float64] = np.diff(np.diff(corners, axis=1), axis=2)
    return cells


def _places(points: Sequence[tuple[float, float, float]], px: int) -> Reals:
    return np.array([(x / px, y / px) for x, y, _ in points], np.float32)


def _blocks(describe: Describe, images: Any) -> Iterator[tuple[slice, Described]]:
    for start in range(0, len(images), BLOCK_PICTURES):
        rows = slice(start, min(start + BLOCK_PICTURES, len(images)))
        yield rows, describe(np.asarray(images[rows]))


# --- Code books -----------------------------------------------------------------------------------


class Codebook(Protocol):
    """Turns the descriptors of pictures into one vector each, (N, D)."""

    setting: dict[str, Any]

    def encode(self, described: Described) -> Reals: ...


class FisherVectors:
    """How the gradient of a mixture's likelihood tells a picture's descriptors from all others'."""

    def __init__(self, sample: Reals, places: Reals, setting: dict[str, Any], seed: int) -> None:
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        self.setting = setting
        width = min(PCA_DIMENSIONS, sample.shape[1], len(sample))
        self.pca = PCA(width, whiten=False, random_state=seed).fit(sample)
        # Places weigh as much as one component does on average.
        self.place_scale = float(self.pca.transform(sample).std()) / PLACE_DEVIATION
        reduced = self._placed(sample, places)
        count = min(setting["gaussians"], len(sample) // 4)
        mixture = GaussianMixture(
            count, covariance_type="diag", max_iter=60, reg_covar=1e-5, random_state=seed
        )
        with _unfinished():
            mixture.fit(reduced)
        self.weights = mixture.weights_.astype(np.float32)
        self.means = mixture.means_.astype(np.float32)  # (K, D)
        self.deviations = np.sqrt(mixture.covariances_).astype(np.float32)

    def _placed(self, vectors: Reals, places: Reals) -> Reals:
        reduced = self.pca.transform(vectors).astype(np.float32)
        placed: Reals = np.concatenate([reduced, self.place_scale * (places - 0.5)], axis=1)
        return placed

    def encode(self, described: Described) -> Reals:
        count, per_picture, width = described.vectors.shape
        places = np.tile(described.places, (count, 1))
        x = self._placed(described.vectors.reshape(-1, width), places)
        posteriors = self._posteriors(x).reshape(count, per_picture, -1)
        x = x.reshape(count, per_picture, -1)
        zeroth = posteriors.sum(1)[:, :, None]  # (N, K, 1)
        first = posteriors.transpose(0, 2, 1) @ x  # (N, K, D)
        second = posteriors.transpose(0, 2, 1) @ x**2
        by_mean = (first - zeroth * self.means) / self.deviations
        by_deviation = (
            second - 2 * first * self.means + zeroth * (self.means**2 - self.deviations**2)
        ) / self.deviations**2
        roots = np.sqrt(self.weights)[:, None] * per_picture
        vectors = np.concatenate([by_mean / roots, by_deviation / (np.sqrt(2) * roots)], axis=2)
        vectors = vectors.reshape(count, -1)
        vectors = np.sign(vectors) * np.sqrt(np.abs(vectors))
        return _unit(vectors)

    def _posteriors(self, x: Reals) -> Reals:
        """(T, D) -> (T, K), from log densities."""
        precision = self.deviations**-2
        logs = (
            -0.5 * (x**2 @ precision.T)
            + x @ (self.means * precision).T
            - 0.5 * (self.means**2 * precision).sum(1)
            - np.log(self.deviations).sum(1)
            + np.log(self.weights)
        )
        logs -= logs.max(1, keepdims=True)
        shares = np.exp(logs)
        posteriors: Reals = shares / shares.sum(1, keepdims=True)
        return posteriors


@contextlib.contextmanager
def _unfinished() -> Iterator[None]:
    """A fit that stops at its limit of steps is good enough, and said in this module."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


class SparseCodes:
    """Codes with few entries over a dictionary; a picture keeps the largest of each cell."""

    def __init__(self, sample: Reals, places: Reals, setting: dict[str, Any], seed: int) -> None:
        from sklearn.decomposition import PCA

        self.setting = setting
        self.nonzeros = int(setting["nonzeros"])
        width = min(PCA_DIMENSIONS, sample.shape[1], len(sample))
        self.pca = PCA(width, random_state=seed).fit(sample)
        few = self._reduced(sample[:DICTIONARY_SAMPLES])
        self.dictionary = learn_dictionary(few, min(ATOMS, len(few)), self.nonzeros, seed)

    def _reduced(self, vectors: Reals) -> torch.Tensor:
        return torch.from_numpy(_unit(self.pca.transform(vectors)))

    def encode(self, described: Described) -> Reals:
        count, per_picture, width = described.vectors.shape
        vectors = self._reduced(described.vectors.reshape(-1, width))
        codes = sparse_codes(vectors, self.dictionary, self.nonzeros)
        codes = codes.view(count, per_picture, -1)  # (N, T, K)
        pooled: list[torch.Tensor] = []
        for cells in PYRAMID:
            index = np.minimum((described.places * cells).astype(int), cells - 1)
            for cell in range(cells**2):
                rows = np.flatnonzero(index[:, 1] * cells + index[:, 0] == cell)
                pooled += _largest(codes[:, rows] if len(rows) else 0 * codes[:, :1])
        return _unit(torch.cat(pooled, 1).numpy())


def _largest(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of codes (N, T, K) the largest positive and negative entries, twice (N, K), none below 0."""
    return codes.amax(1).clamp(min=0), (-codes.amin(1)).clamp(min=0)


def learn_dictionary(x: torch.Tensor, atoms: int, nonzeros: int, seed: int) -> torch.Tensor:
    """A dictionary (K, D) with rows of length 1, for x (T, D): Mairal and others, 2010.

    Blocks are coded with the dictionary so far; then each atom in turn moves to where it lessens
    the error most. scikit-learn's has no batched coding and takes an hour for 30,000 vectors.
    """
    draw = torch.Generator().manual_seed(seed)
    dictionary = _of_length_1(x[torch.randperm(len(x), generator=draw)[:atoms]])
    codes_by_codes = torch.zeros(atoms, atoms)
    codes_by_x = torch.zeros(atoms, x.shape[1])
    for _ in range(DICTIONARY_PASSES):
        for rows in torch.split(torch.randperm(len(x), generator=draw), DICTIONARY_BLOCK):
            codes = sparse_codes(x[rows], dictionary, nonzeros)
            codes_by_codes = DICTIONARY_MEMORY * codes_by_codes + codes.T @ codes
            codes_by_x = DICTIONARY_MEMORY * codes_by_x + codes.T @ x[rows]
            for atom in torch.nonzero(codes_by_codes.diagonal() > 1e-3)[:, 0].tolist():
                used = codes_by_codes[atom]
                moved = dictionary[atom] + (codes_by_x[atom] - used @ dictionary) / used[atom]
                dictionary[atom] = _of_length_1(moved)
    return dictionary


def _of_length_1(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def sparse_codes(x: torch.Tensor, dictionary: torch.Tensor, nonzeros: int) -> torch.Tensor:
    """Codes z (T, K) with so many entries for x (T, D): orthogonal matching pursuit.

    Each step takes the atom, of length 1, that has most in common with what is missing, and fits
    the entries of all that are taken anew: what is new in the atom is set at right angles to those
    before it, and the entries are solved for at the end.
    """
    count = min(nonzeros, len(dictionary))
    codes = torch.zeros(len(x), len(dictionary))
    blocks = zip(torch.split(x, CODED_AT_ONCE), torch.split(codes, CODED_AT_ONCE), strict=True)
    for missing, found in blocks:
        axes = torch.zeros(len(missing), count, x.shape[1])  # at right angles, one for each atom
        atoms_by_axes = torch.zeros(len(missing), count, count)  # upper triangles
        along = torch.zeros(len(missing), count)  # of x, by axis
        taken = torch.zeros(len(missing), 0, dtype=torch.int64)
        for place in range(count):
            common = (missing @ dictionary.T).abs_().scatter_(1, taken, -1.0)  # no atom twice
            chosen = common.argmax(1, keepdim=True)
            taken = torch.cat([taken, chosen], 1)
            atom, before = dictionary[chosen], axes[:, :place]  # (T, 1, D)
            shares = atom @ before.mT  # (T, 1, place)
            axis = (atom - shares @ before)[:, 0]
            length = axis.norm(dim=1, keepdim=True).clamp(min=SHORTEST)
            axis /= length
            atoms_by_axes[:, :place, place] = shares[:, 0]
            atoms_by_axes[:, place, place] = length[:, 0]
            axes[:, place] = axis
            along[:, place] = (missing * axis).sum(1)
            missing = missing - along[:, place : place + 1] * axis
        entries = torch.linalg.solve_triangular(atoms_by_axes, along[:, :, None], upper=True)
        found.scatter_(1, taken, entries[:, :, 0])
    return codes


def _unit(vectors: Reals) -> Reals:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Reals = (vectors / np.maximum(lengths, 1e-8)).astype(np.float32)
    return unit


def _encode(
    codebooks: Sequence[Codebook], describe: Describe, images: Any, say: Say
) -> list[Reals]:
    """Vectors (N, D) by each code book; descriptors are made once. Tells how far it is."""
    began = told = time.perf_counter()
    parts: list[list[Reals]] = [[] for _ in codebooks]
    for rows, described in _blocks(describe, images):
        for codebook, found in zip(codebooks, parts, strict=True):
            found.append(codebook.encode(described))
        if (now := time.perf_counter()) - told > TOLD_EVERY_SECONDS:
            told, left = now, (now - began) * (len(images) / rows.stop - 1)
            say(f"{rows.stop:,} of {len(images):,} pictures coded, {duration(left)} left")
    return [np.concatenate(found) for found in parts]


# --- What is chosen on held-out pictures ----------------------------------------------------------


def _codebook(method: str, sample: Reals, places: Reals, tried: int, seed: int) -> Codebook:
    if method == "sift-fisher":
        return FisherVectors(sample, places, {"gaussians": tried}, seed)
    return SparseCodes(sample, places, {"atoms": ATOMS, "nonzeros": tried}, seed)


def _best(
    codebooks: Sequence[Codebook],
    describe: Describe,
    train: Split,
    learn: NDArray[np.int64],
    held_out: NDArray[np.int64],
    say: Say,
) -> Codebook:
    """The code book whose classifier, of the rows `learn`, misses fewest of `held_out`."""
    coded = _encode(codebooks, describe, train.images[learn], say)
    unseen = _encode(codebooks, describe, train.images[held_out], say)
    errors = []
    for codebook, seen, others in zip(codebooks, coded, unseen, strict=True):
        classifier = _Classifier().fit(CODEBOOK_STRENGTH, seen, train.labels[learn])
        errors.append(classifier.misses(others, train.labels[held_out]))
        say(f"{codebook.setting} misses {errors[-1]:.1%} of held-out pictures")
    best = codebooks[int(np.argmin(errors))]
    best.setting = {**best.setting, "tried": [round(error, 4) for error in errors]}
    return best


def _sample(describe: Describe, images: Any, seed: int) -> tuple[Reals, Reals]:
    """At most SAMPLED descriptors of the pictures, evenly, with their places."""
    draw = np.random.default_rng(seed)
    vectors, places = [], []
    for _, described in _blocks(describe, images):
        count, per_picture, width = described.vectors.shape
        wanted = min(count * per_picture, -(-SAMPLED * count // len(images)))
        rows = draw.choice(count * per_picture, wanted, replace=False)
        vectors.append(described.vectors.reshape(-1, width)[rows])
        places.append(described.places[rows % per_picture])
    mixed = draw.permutation(sum(map(len, vectors)))
    return np.concatenate(vectors)[mixed], np.concatenate(places)[mixed]


def _tuned_strength(coded: Reals, labels: Any, order: Any, cut: int) -> tuple[float, float]:
    """The C that misses fewest of the held-out tenth, and its error there.

    From the smallest upwards, each fit from the last; the first that misses more is the end.
    """
    held_out, learn = order[:cut], order[cut:]
    classifier, some, known = _Classifier(), coded[learn], labels[learn]
    best, fewest = STRENGTHS[0], 1.0
    for strength in STRENGTHS:
        found = classifier.fit(strength, some, known).misses(coded[held_out], labels[held_out])
        if found > fewest:
            break
        if found < fewest:
            best, fewest = strength, found
    return best, fewest


class _Classifier:
    """Multinomial logistic regression; a fit starts from the last one, and has 200 steps.

    At ten times this tolerance a fit that starts from another strength stays there.
    """

    def __init__(self) -> None:
        from sklearn.linear_model import LogisticRegression

        self.model = LogisticRegression(max_iter=200, tol=1e-4, warm_start=True)

    def fit(self, strength: float, coded: Reals, labels: Any) -> "_Classifier":
        with _unfinished():
            self.model.set_params(C=strength).fit(coded, labels)
        return self

    def misses(self, coded: Reals, labels: Any) -> float:
        return float((self.model.predict(coded) != labels).mean())
