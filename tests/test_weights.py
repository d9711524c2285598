"""model.safetensors: one file is enough to predict, and is never taken for what it is not."""

import json
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import alexnet
import fabricate
from alexnet.augment import Preprocessing
from alexnet.errors import UserError
from alexnet.model import AlexNet, build
from alexnet.networks import find_network, with_dropout
from alexnet.weights import ModelCard, load, save_model


def card_of(network: str = "small", **changes: Any) -> ModelCard:
    generator = torch.Generator().manual_seed(1)
    size_px = find_network(network).input_px + 8
    mean_image = 255 * torch.rand(size_px, size_px, 3, generator=generator)
    preprocessing = Preprocessing(mean_image, size_px - 8, "centre", (1.0, 2.0, 3.0))
    card = ModelCard(
        network=network,
        dropout="described",
        class_names=("cat", "dog", "été"),
        class_ids=("n01", "n02", "n03"),
        dataset="pets",
        preprocessing=preprocessing,
        eigenvalues=torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64),
        eigenvectors=torch.eye(3, dtype=torch.float64),
        views=(1, 10),
    )
    return replace(card, **changes)


def network(name: str = "small", seed: int = 0) -> AlexNet:
    return build(name, 3, torch.Generator().manual_seed(seed))


def images(size_px: int = 56) -> Tensor:
    return 100 * torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, network(), card_of())
    return path


def one_line(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["small", "cifar10-13pct", "cifar10-80sec"])
def test_loaded_weights_give_the_same_logits(tmp_path: Path, name: str) -> None:
    model = network(name).to(memory_format=torch.channels_last).eval()
    save_model(tmp_path / "model.safetensors", model, card_of(name))
    loaded = load(tmp_path / "model.safetensors")
    assert not loaded.training
    x = images(model.network.input_px)
    with torch.inference_mode():
        expected = model(x.to(memory_format=torch.channels_last))
        assert torch.equal(loaded.to(memory_format=torch.channels_last)(x), expected)


def test_the_card_comes_back_whole(saved: Path) -> None:
    card, expected = load(saved).card, card_of()
    assert card is not None
    for part in fields(ModelCard):
        value, wanted = getattr(card, part.name), getattr(expected, part.name)
        if part.name == "preprocessing":
            assert torch.equal(value.mean_image, wanted.mean_image)
            assert value.mean_image.dtype == torch.float32
            assert (value.crop_px, value.mean_at) == (wanted.crop_px, wanted.mean_at)
            assert value.input_std == wanted.input_std
        elif isinstance(wanted, Tensor):
            assert torch.equal(value, wanted)
            assert value.dtype == wanted.dtype
        else:
            assert value == wanted, part.name
    assert card.num_classes == 3


def test_a_run_folder_stands_for_its_weights(saved: Path) -> None:
    x = images()
    with torch.inference_mode():
        assert torch.equal(alexnet.load(saved.parent)(x), alexnet.load(str(saved))(x))


def test_another_reader_finds_the_weights_under_their_layer_names(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        assert set(network().state_dict()) | {"mean_image", "eigenvalues", "eigenvectors"} == set(
            file.keys()
        )
        card = json.loads(file.metadata()["card"])
    assert card["input_scale"] == "0..255, less the mean image"
    assert card["class_names"] == ["cat", "dog", "été"]


def test_a_dropout_of_ones_own_comes_back(tmp_path: Path) -> None:
    model = build(with_dropout(find_network("small"), "inverted"), 3)
    save_model(tmp_path / "model.safetensors", model, card_of(dropout="inverted"))
    loaded = load(tmp_path)
    assert loaded.network == model.network != find_network("small")
    x = images()
    with torch.inference_mode():
        assert torch.equal(loaded(x), model.eval()(x))


@settings(max_examples=40)
@given(
    position=st.floats(0, 1, exclude_max=True) | st.floats(0, 0.002),
    bit=st.integers(0, 7),
    cut=st.booleans(),
)
def test_a_damaged_file_is_refused_in_one_line_or_nothing_was_lost(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, position: float, bit: int, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    data = saved.read_bytes()
    path.write_bytes(data[: int(position * len(data))] if cut else data)
    if not cut:
        fabricate.flip_bit(path, position, bit)
    try:
        loaded = load(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert not cut
    assert loaded.card is not None
    assert loaded.card.class_names == card_of().class_names
    assert loaded.card.preprocessing.crop_px == card_of().preprocessing.crop_px
    for name, tensor in network().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_file_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    assert "is not there; train a network first" in one_line(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is not there"):
        load(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_somebody_elses_safetensors_are_told_apart(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, path, metadata=metadata)
    assert "was not written by alexnet" in one_line(path)


def header(value: object) -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        b"\xff" * 64,
        struct.pack("<Q", 2**62) + b"{}",
        header([]),
        header({"__metadata__": []}),
        header({"__metadata__": {"card": 1}}),
        header({"__metadata__": {"card": "[]"}}),
        header({"__metadata__": {"card": "{"}}),
        header({"__metadata__": {"card": '{"format": "alexnet-model"}'}}),
    ],
)
def test_what_is_no_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    one_line(path)


def test_weights_of_another_network_than_the_card_says_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, network(), replace(card_of(), network="cifar10-80sec"))
    assert "damaged or of another version" in one_line(path)
    save_model(path, network(), replace(card_of(), network="from-the-future"))
    with pytest.raises(UserError, match="no network 'from-the-future'"):
        load(path)


def test_equal_weights_are_equal_files(saved: Path, tmp_path: Path) -> None:
    for attempt in range(4):
        save_model(tmp_path / f"{attempt}.safetensors", network(), card_of())
        assert (tmp_path / f"{attempt}.safetensors").read_bytes() == saved.read_bytes()


def test_saving_again_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for seed in (0, 1):
        save_model(path, network(seed=seed), card_of())
    assert torch.equal(load(path).state_dict()["fc8.weight"], network(seed=1).fc8.weight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
