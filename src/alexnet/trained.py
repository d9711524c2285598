"""A trained network in use: pictures in, labels and features out (Section 6).

    model = alexnet.load("runs/pictures")
    model.predict("cat.jpg").name                       # "tabby"
    model.extract(["a.jpg", "b.jpg"], layer="fc7")      # (2, 4096)

Pictures are prepared by the functions of training and by what the weights file says: there is
nothing to choose, and so nothing to get wrong. `alexnet.load` makes these.

Not here: many files (`labelling.py`, `extract.py`), errors over a split (`evaluate.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alexnet.augment import check_views, mean_of_views
from alexnet.errors import UserError, suggest
from alexnet.images import UnreadableImage, read_image, resize_and_crop, to_rgb
from alexnet.model import AlexNet
from alexnet.networks import Layer

if TYPE_CHECKING:
    from alexnet.weights import ModelCard

PRECISIONS = ("fp32", "bf16")

# A file, a file's bytes, a Pillow picture of any mode, or RGB pixels (H, W, 3).
Picture = str | Path | bytes | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Guess:
    """One class and the probability that the network gives it."""

    name: str
    class_id: str
    label: int
    probability: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one picture: float32 (C,), and its guesses, most probable first."""

    probabilities: NDArray[np.float32]
    top: tuple[Guess, ...]

    @property
    def name(self) -> str:
        return self.top[0].name

    @property
    def probability(self) -> float:
        return self.top[0].probability


class TrainedAlexNet(AlexNet):
    """A network with what its weights file says of itself, its `card`."""

    card: "ModelCard"

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is one picture
        self, pictures: Picture, *, views: int = 1, top: int = 5, precision: str = "fp32"
    ) -> Prediction: ...
    @overload
    def predict(
        self, pictures: Sequence[Picture], *, views: int = 1, top: int = 5, precision: str = "fp32"
    ) -> list[Prediction]: ...
    def predict(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        views: int = 1,
        top: int = 5,
        precision: str = "fp32",
    ) -> Prediction | list[Prediction]:
        """The most probable classes of one picture, or of each of several.

        views: 1, the centre crop, or 10, the paper's patches, softmax averaged (Section 4.1).
        top: how many guesses; fewer where there are fewer classes. Raises UserError for a
        picture that cannot be read.
        """
        if top < 1:
            raise UserError(f"top is {top}; it must be at least 1")
        if _is_one(pictures):
            pixels = self.prepared(pictures)[None]  # type: ignore[arg-type]
            return self.predictions(pixels, views=views, top=top, precision=precision)[0]
        pixels = self._stacked(pictures)  # type: ignore[arg-type]
        return self.predictions(pixels, views=views, top=top, precision=precision)

    def extract(
        self,
        pictures: Picture | Sequence[Picture],
        layer: str | None = None,
        *,
        before_relu: bool = False,
        views: int = 1,
        precision: str = "fp32",
    ) -> NDArray[np.float32]:
        """One layer's output for a picture (D,), or for several (N, D); fc7's unless named.

        Right after its nonlinearity, or, with `before_relu`, the linear output. The maps of a
        convolutional layer are flattened, channels first. Over ten views, their mean.
        """
        vectors_of = self.feature_function(layer, before_relu=before_relu, precision=precision)
        if _is_one(pictures):
            pixels = self.prepared(pictures)[None]  # type: ignore[arg-type]
            return self.vectors(vectors_of, pixels, views=views)[0]  # type: ignore[no-any-return]
        return self.vectors(vectors_of, self._stacked(pictures), views=views)  # type: ignore[arg-type]

    def prepared(self, picture: Picture) -> NDArray[np.uint8]:
        """The square that the network's crops are cut from: uint8 (S, S, 3)."""
        return resize_and_crop(_rgb(picture), self.card.preprocessing.image_px)

    def _stacked(self, pictures: Sequence[Picture]) -> NDArray[np.uint8]:
        size_px = self.card.preprocessing.image_px
        empty = np.empty((0, size_px, size_px, 3), np.uint8)
        return np.stack([self.prepared(one) for one in pictures]) if len(pictures) else empty

    def predictions(
        self,
        pixels: NDArray[np.uint8],
        *,
        views: int = 1,
        top: int = 5,
        batch_size: int = 128,
        precision: str = "fp32",
    ) -> list[Prediction]:
        """Of squares that are prepared already, (B, S, S, 3). `batch_size` counts crops."""

        def probabilities_of(crops: Tensor) -> Tensor:
            with self._autocast(precision):
                logits = self(crops)
            return logits.float().softmax(1)  # type: ignore[no-any-return]

        found = self.vectors(probabilities_of, pixels, views=views, batch_size=batch_size)
        return [self._prediction(row, top) for row in found]

    def _prediction(self, probabilities: NDArray[np.float32], top: int) -> Prediction:
        card = self.card
        first = np.argsort(-probabilities, kind="stable")[:top]
        guesses = tuple(
            Guess(card.class_names[i], card.class_ids[i], int(i), float(probabilities[i]))
            for i in first
        )
        return Prediction(probabilities, guesses)

    def feature_function(
        self, layer: str | None = None, *, before_relu: bool = False, precision: str = "fp32"
    ) -> Callable[[Tensor], Tensor]:
        """Crops (N, 3, crop, crop) -> (N, D): for `vectors`. Raises UserError for no such layer."""
        name = self.network.layer(layer or self.network.feature_layer).name

        def vectors_of(crops: Tensor) -> Tensor:
            with self._autocast(precision):
                return self.features(crops, name, before_relu=before_relu).flatten(1).float()

        return vectors_of

    @torch.inference_mode()
    def vectors(
        self,
        vectors_of: Callable[[Tensor], Tensor],
        pixels: NDArray[np.uint8],
        *,
        views: int = 1,
        batch_size: int = 128,
    ) -> NDArray[np.float32]:
        """`vectors_of` of prepared squares (B, S, S, 3), averaged over views: (B, K)."""
        check_views(views)
        if self.training:
            raise UserError("the network is in training mode; call eval() before it predicts")
        if not len(pixels):
            return np.empty((0, 0), np.float32)
        device = next(self.parameters()).device
        pictures = torch.from_numpy(np.array(pixels)).to(device)  # a copy: no read-only map
        found = mean_of_views(
            vectors_of,
            pictures,
            self.card.preprocessing.to(device),
            views=views,
            batch_size=batch_size,
        )
        return found.cpu().numpy()

    def _autocast(self, precision: str) -> torch.autocast:
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision {precision!r}{suggest(precision, PRECISIONS)}")
        device = next(self.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def feature_point(layer: Layer, before_relu: bool) -> dict[str, object]:
    """Where in a layer its features are taken, in words for files: `steps` are those before it."""
    kinds = [step if isinstance(step, str) else type(step).__name__ for step in layer.then]
    nonlinear = [index for index, step in enumerate(layer.then) if isinstance(step, str)]
    if not nonlinear:
        return {"taken": "linear output; no nonlinearity follows", "steps": []}
    if before_relu:
        return {"taken": f"before the {kinds[nonlinear[-1]]}: linear output", "steps": []}
    last = nonlinear[-1]
    return {"taken": f"after the {kinds[last]}", "steps": kinds[: last + 1]}


def _is_one(pictures: object) -> bool:
    if isinstance(pictures, np.ndarray):
        return pictures.ndim == 3
    return isinstance(pictures, str | Path | bytes | Image.Image)


def _rgb(picture: Picture) -> Image.Image:
    """Raises UserError for what is no picture."""
    try:
        if isinstance(picture, Image.Image):
            return to_rgb(picture)
        if isinstance(picture, np.ndarray):
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
                raise UserError(
                    f"pixels are uint8 (H, W, 3), red first; not {picture.dtype} {picture.shape}"
                )
            return Image.fromarray(picture)
        source = picture if isinstance(picture, bytes) else Path(picture)
        return read_image(source)
    except (UnreadableImage, OSError) as error:
        what = "the picture" if isinstance(picture, bytes | Image.Image) else str(picture)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what} cannot be read: {reason}") from None
