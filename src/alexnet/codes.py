"""Short binary codes of features by an auto-encoder, and search by Hamming distance (Section 6.1).

The paper closes its retrieval with: "this could be made efficient by training an auto-encoder to
compress these vectors to short binary codes". Here it is: encoder and decoder with one hidden
layer each beside a linear path, code units rounded to 0 or 1 on the way forward and not on the
way back (Krizhevsky and Hinton 2011, "Using very deep autoencoders for content-based image
retrieval"), noise before the rounding (Salakhutdinov and Hinton 2009). The linear path starts
as the rotated principal components of Gong and Lazebnik 2011 (`rotation`), so that training can
only improve on those. `random_planes` is the plain alternative.

Not here: where codes are kept (`index.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from alexnet.errors import UserError
from alexnet.files import write_bytes

HIDDEN = 256
BATCH = 256
STEPS = 600
LR = 3e-4
NOISE = 0.3  # standard deviation before the rounding; code units have 1 at the start
MAX_TRAINED_ON = 100_000  # features; more change little
ROTATIONS = 30
ENCODED_AT_A_TIME = 4096
WORDS_AT_A_TIME = 1 << 20

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Encoder:
    """From features (N, D) to codes: the sign of `linear` and a hidden layer, less the mean.

    mean (D,) and scale (1,) make the input; linear (D, bits), hidden (D, H), hidden_bias (H,),
    out (H, bits), out_bias (bits,). `hidden` of width 0 leaves the linear path alone.
    """

    mean: Tensor
    scale: Tensor
    linear: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    out: Tensor
    out_bias: Tensor

    @property
    def bits(self) -> int:
        return self.linear.shape[1]

    @property
    def width(self) -> int:
        return self.linear.shape[0]

    def units(self, features: Tensor) -> Tensor:
        """Code units before the rounding: (B, D) -> (B, bits)."""
        x = (features - self.mean) / self.scale
        return (
            x @ self.linear
            + F.relu(x @ self.hidden + self.hidden_bias) @ self.out
            + (self.out_bias)
        )

    def save(self, path: Path) -> None:
        """Write its tensors as safetensors, atomically."""
        write_bytes(path, save({name: tensor.contiguous() for name, tensor in vars(self).items()}))

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """Raises UserError where the file is missing or damaged."""
        try:
            return cls(**load_file(path))
        except (SafetensorError, OSError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is damaged ({reason}); make the index again") from None

    def encode(self, features: Any) -> Codes:
        """Codes uint8 (N, bits / 8), the first unit in the highest bit."""
        codes = np.empty((len(features), self.bits // 8), np.uint8)
        for start in range(0, len(features), ENCODED_AT_A_TIME):
            block = np.array(features[start : start + ENCODED_AT_A_TIME], np.float32)
            units = self.units(torch.from_numpy(block)).numpy()
            codes[start : start + len(block)] = np.packbits(units > 0, axis=1)
        return codes


def train_encoder(
    features: Any,
    bits: int,
    *,
    seed: int = 0,
    steps: int = STEPS,
    progress: Callable[[int, int], None] | None = None,
) -> Encoder:
    """Train an auto-encoder on features (N, D), an array or rows of an index, to codes of `bits`.

    Minimises the squared error of the features made from the rounded code, by Adam with a rate
    that falls linearly. Raises UserError for bits that are no multiple of 8, or fewer than two
    different features.
    """
    generator = torch.Generator().manual_seed(seed)
    x, start = _prepared(features, bits, seed)
    with torch.random.fork_rng(devices=[]):
        decoder = [
            (start.linear.T / start.linear.square().sum(0)[:, None]).contiguous(),  # (bits, D)
            _normal((bits, HIDDEN), bits**-0.5, generator),
            torch.zeros(HIDDEN),
            torch.zeros(HIDDEN, x.shape[1]),
            torch.zeros(x.shape[1]),
        ]
        hidden = _normal((x.shape[1], HIDDEN), x.shape[1] ** -0.5, generator)
        encoder = [
            start.linear.clone(),
            hidden,
            torch.zeros(HIDDEN),
            torch.zeros(HIDDEN, bits),
            torch.zeros(bits),
        ]
        # The decoder's linear path is fitted to the first codes, so that the loss starts low.
        signs = torch.sign(x @ start.linear)
        ridge = len(x) * 1e-3 * torch.eye(bits)
        decoder[0] = torch.linalg.solve(signs.T @ signs + ridge, signs.T @ x)
        parameters = [tensor.requires_grad_() for tensor in (*encoder, *decoder)]
        optimizer = torch.optim.Adam(parameters, lr=LR)
        for step in range(steps):
            rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator)
            optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
            loss = _loss(x[rows], encoder, decoder, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if progress is not None:
                progress(step + 1, steps)
    trained = [tensor.detach().contiguous() for tensor in encoder]
    return Encoder(start.mean, start.scale, *trained)


def rotation(features: Any, bits: int, *, seed: int = 0) -> Encoder:
    """The linear codes that the auto-encoder starts from: iterative quantisation.

    Principal components, turned so that their signs are closest to them (Gong and Lazebnik 2011).
    Where there are more bits than components, the turn is a frame of more directions.
    """
    return _prepared(features, bits, seed)[1]


def random_planes(features: Any, bits: int, *, seed: int = 0) -> Encoder:
    """Codes by the side of random planes through the mean: locality-sensitive hashing."""
    x, start = _prepared(features, bits, seed, rotations=0)
    planes = _normal((x.shape[1], bits), 1.0, torch.Generator().manual_seed(seed))
    return _linear(start.mean, start.scale, planes)


def hamming_nearest(
    codes: Codes, queries: Codes, count: int, live: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The `count` codes (N, bytes) that differ in the fewest bits from each query (Q, bytes).

    Returns indices int64 (Q, count) and the number of differing bits, nearest first, equal ones
    in the order of the rows. Rows that `live` (N,) excludes are not found.
    """
    rows = len(codes) if live is None else int(live.sum())
    if not 1 <= count <= rows:
        raise UserError(f"{count} neighbours asked of {rows} pictures")
    words, wanted = _words(codes), _words(queries)
    indices = np.empty((len(queries), count), np.int64)
    distances = np.empty((len(queries), count), np.int64)
    beyond = np.uint16(8 * codes.shape[1] + 1)
    for number, query in enumerate(wanted):
        differing = np.empty(len(words), np.uint16)
        for start in range(0, len(words), WORDS_AT_A_TIME):
            block = words[start : start + WORDS_AT_A_TIME]
            differing[start : start + len(block)] = _ones(block ^ query)
        if live is not None:
            differing[~live] = beyond
        # The count-th smallest value from a histogram: distances are small whole numbers.
        limit = np.searchsorted(np.bincount(differing).cumsum(), count)
        near = np.flatnonzero(differing <= limit)
        first = near[np.argsort(differing[near], kind="stable")[:count]]
        indices[number], distances[number] = first, differing[first]
    return indices, distances


def _words(codes: Codes) -> NDArray[np.uint64]:
    """Codes as rows of 64-bit words, filled up with zeros."""
    missing = -codes.shape[1] % 8
    padded = np.pad(codes, ((0, 0), (0, missing))) if missing else codes
    return np.ascontiguousarray(padded).view(np.uint64)


def _ones(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """How many bits are set in each row."""
    if hasattr(np, "bitwise_count"):
        counts = np.bitwise_count(words)
    else:  # NumPy 1
        table = np.array([bin(value).count("1") for value in range(256)], np.uint8)
        counts = table[words.view(np.uint8)]
    total = counts[:, 0].astype(np.uint16)
    for column in range(1, counts.shape[1]):
        total += counts[:, column]
    return total


def _loss(
    x: Tensor, encoder: list[Tensor], decoder: list[Tensor], generator: torch.Generator
) -> Tensor:
    """Squared error of the features that the decoder makes from rounded, noisy code units."""
    linear, hidden, hidden_bias, out, out_bias = encoder
    units = x @ linear + F.relu(x @ hidden + hidden_bias) @ out + out_bias
    noisy = units + NOISE * torch.randn(units.shape, generator=generator)
    soft = torch.tanh(noisy)
    code = soft + (torch.sign(noisy) - soft).detach()  # forward rounded, backward smooth
    back, spread, spread_bias, into, into_bias = decoder
    made = code @ back + F.relu(code @ spread + spread_bias) @ into + into_bias
    return (made - x).square().sum(1).mean()


def _prepared(
    features: Any, bits: int, seed: int, rotations: int = ROTATIONS
) -> tuple[Tensor, Encoder]:
    """(Features less their mean in one scale, the linear encoder to start from)."""
    if bits < 8 or bits % 8:
        raise UserError(f"codes of {bits} bits: choose a multiple of 8, such as 128 or 256")
    chosen = np.random.default_rng(seed).permutation(len(features))[:MAX_TRAINED_ON]
    sample = torch.from_numpy(np.array(features[np.sort(chosen)], np.float32))
    mean = sample.mean(0)
    centred = sample - mean
    scale = centred.square().sum(1).mean().sqrt()
    if len(sample) < 2 or not float(scale) > 0:
        raise UserError("codes need pictures whose features differ; there are none such")
    x = centred / scale
    covariance = (x.T @ x).double() / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    # Directions without variance have no sign to speak of.
    rank = int((values > 1e-9 * values[-1]).sum())
    kept = vectors[:, -min(bits, rank) :].flip(1).float()  # (D, d), strongest first
    turn = _turn(x @ kept, bits, seed, rotations)
    linear = kept @ turn
    return x, _linear(mean, scale, linear / (x @ linear).std(0).mean())


def _turn(components: Tensor, bits: int, seed: int, rotations: int) -> Tensor:
    """(d, bits) with orthonormal rows: the turn that brings the components nearest to signs."""
    generator = torch.Generator().manual_seed(seed)
    turn: Tensor = torch.linalg.qr(_normal((bits, bits), 1.0, generator))[0]
    turn = turn[: components.shape[1]]
    for _ in range(rotations):
        signs = torch.sign(components @ turn)
        left, _, right = torch.linalg.svd(components.T @ signs, full_matrices=False)
        turn = left @ right
    return turn


def _linear(mean: Tensor, scale: Tensor, linear: Tensor) -> Encoder:
    width, bits = linear.shape
    nothing = (torch.zeros(width, 0), torch.zeros(0), torch.zeros(0, bits), torch.zeros(bits))
    return Encoder(mean, scale.reshape(1), linear.contiguous(), *nothing)


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    return std * torch.randn(shape, generator=generator)
