"""The paper's network in Keras 3, trained by its own `fit`, on the backend in KERAS_BACKEND.

    KERAS_BACKEND=jax python benchmarks/peers/keras_step.py --precision bf16

Keras has no response norm; this one is of its operations. The time of a step is the gap between
two ends of a minibatch, as its callbacks see them.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from alexnet.turns import serve


def norm(x: Any) -> Any:
    squares = ops.pad(ops.square(x), [[0, 0], [0, 0], [0, 0], [2, 2]])
    channels = x.shape[-1]
    window = sum(squares[..., i : i + channels] for i in range(5))
    return x * ops.power(2.0 + 1e-4 * window, -0.75)


def conv(filters: int, kernel: int, groups: int = 1, **options: Any) -> layers.Conv2D:
    return layers.Conv2D(filters, kernel, groups=groups, activation="relu", **options)


def network() -> keras.Model:
    inputs = keras.Input((227, 227, 3))
    x = layers.MaxPool2D(3, 2)(layers.Lambda(norm)(conv(96, 11, strides=4)(inputs)))
    x = layers.MaxPool2D(3, 2)(layers.Lambda(norm)(conv(256, 5, 2, padding="same")(x)))
    x = conv(384, 3, padding="same")(x)
    x = conv(384, 3, 2, padding="same")(x)
    x = layers.Flatten()(layers.MaxPool2D(3, 2)(conv(256, 3, 2, padding="same")(x)))
    for _ in range(2):
        x = layers.Dropout(0.5)(layers.Dense(4096, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(1000)(x))


def prepare() -> tuple[Callable[[], float], dict[str, Any]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    if args.precision == "bf16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    generator = np.random.default_rng(0)
    images = generator.standard_normal((args.batch_size, 227, 227, 3), np.float32)
    labels = generator.integers(1000, size=args.batch_size)

    def step() -> float:
        return float(model.train_on_batch(images, labels))

    backend = keras.backend.backend()
    versions = {"keras": keras.__version__, backend: __import__(backend).__version__}
    return step, {"versions": versions, "prepared": time.process_time()}


if __name__ == "__main__":
    serve(prepare)
