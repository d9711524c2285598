"""Each rank's part of a network is the one-device network's: logits, gradients, weights, dropout.

In float64, with two and four processes over loopback. The networks have the paper's form with
few kernels; records/2026-11-20_columns shows the same of the full ones.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alexnet.columns import check_cut, cut, cut_optimizer
from alexnet.describe import describe
from alexnet.errors import UserError
from alexnet.model import AlexNet, build
from alexnet.networks import NETWORKS, Conv, Full, Network, change
from alexnet.optim import PaperSGD, parameter_groups
from alexnet.parallel import Ranks
from ranks import Crew

IMAGES, CLASSES, STEPS = 6, 7, 4


def few_kernels(name: str, columns: int = 2) -> Network:
    """A network with a few kernels and units per column, for pictures of 67 pixels."""
    network = replace(NETWORKS[name], columns=columns, input_px=67)
    for layer in network.layers:
        if isinstance(layer, Conv):
            network = change(network, layer.name, maps=columns * (layer.maps // 32), std=0.2)
        elif isinstance(layer, Full):
            units = columns * 6 if layer.units else 0
            network = change(network, layer.name, units=units, std=0.2)
    return network


def make(network: Network) -> AlexNet:
    model = build(network, CLASSES, torch.Generator().manual_seed(1)).double()
    model.to(memory_format=torch.channels_last)
    model.dropout_generator = torch.Generator().manual_seed(2)
    return model.train()


def picture_batch(network: Network, images: int = IMAGES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    px = network.input_px
    pictures = 20 * torch.randn(images, 3, px, px, generator=generator, dtype=torch.float64)
    return pictures, torch.randint(CLASSES, (images,), generator=generator)


def optimizer_of(model: torch.nn.Module) -> PaperSGD:
    return PaperSGD(parameter_groups(model, lr=0.002, bias_lr=0.002))


def learn(model: AlexNet, network: Network, steps: int = STEPS) -> dict[str, object]:
    """Logits and gradients of the first step; weights and velocities after the last."""
    images, labels = picture_batch(network)
    optimizer = optimizer_of(model)
    if hasattr(model, "take_share"):
        cut_optimizer(optimizer, model)
        model.take_share(len(images))
    found: dict[str, Any] = {}
    for step in range(steps):
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        found.setdefault("losses", []).append(loss.item())
        if step == 0:
            found["logits"] = logits.detach()
            found["gradients"] = {n: w.grad.clone() for n, w in model.named_parameters()}
        optimizer.step()
    found["weights"] = model.state_dict()
    found["optimizer"] = optimizer.state_dict()["state"]
    return found


def learn_as_part(ranks: Ranks, network: Network) -> dict[str, object]:
    part = cut(make(network), ranks.columns)
    found = learn(part, network)
    gradients = found["gradients"]
    found["gradients"] = {name: part.merged(name, grad) for name, grad in gradients.items()}
    found["parameters"] = sum(weight.numel() for weight in part.parameters())
    found["sent"] = dict(ranks.journal.sent)
    return found


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-11, atol=1e-12)


CUTS = [("paper", 2), ("source", 2), ("sixth-conv", 2), ("no-conv3", 2), ("paper", 4)]


@pytest.mark.parametrize(("name", "columns"), CUTS)
def test_columns_are_the_one_device_network_step_by_step(
    crew: Crew, name: str, columns: int
) -> None:
    network = few_kernels(name, columns)
    expected = learn(make(network), network)
    for found in crew.run(learn_as_part, network, size=columns, way=f"columns={columns}"):
        torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-11, atol=1e-12)
        assert_close(found["gradients"], expected["gradients"])
        assert_close(found["weights"], expected["weights"])
        for index, state in expected["optimizer"].items():
            assert_close(found["optimizer"][index], state)


def exchange_bytes(ranks: Ranks, network: Network) -> dict[str, int]:
    part = cut(make(network), ranks.columns)
    images, labels = picture_batch(network)
    part.take_share(len(images))
    ranks.journal.sent.clear()
    F.cross_entropy(part(images), labels).backward()
    return dict(ranks.journal.sent)


@pytest.mark.parametrize(("name", "columns"), [("paper", 2), ("sixth-conv", 2), ("paper", 4)])
def test_the_columns_meet_where_the_paper_says_and_nowhere_else(
    crew: Crew, name: str, columns: int
) -> None:
    network = few_kernels(name, columns)
    every = crew.run(exchange_bytes, network, size=columns, way=f"columns={columns}")
    meets = ("conv3", "conv6", "fc6", "fc7", "fc8") if name == "sixth-conv" else MEETS
    expected = {f"{layer} {way}" for layer in meets for way in ("forward", "backward")}
    assert set(every[0]) == expected | {"logits"}
    counted = describe(network, CLASSES)
    sent = {name: sum(rank[name] for rank in every) for name in every[0]}
    for layer in counted.layers:
        if layer.name in meets:
            doubles = 2 * layer.exchange_bytes * IMAGES
            assert sent[f"{layer.name} forward"] == sent[f"{layer.name} backward"] == doubles
    assert sent["logits"] == 2 * counted.logit_bytes * IMAGES


MEETS = ("conv3", "fc6", "fc7", "fc8")


def test_a_network_that_has_no_such_columns_is_not_cut() -> None:
    for name, columns, says in (
        ("one-gpu", 2, "has one column"),
        ("paper", 4, "has 2 columns, not 4"),
        ("caffe", 2, "its response norms reach across"),
    ):
        with pytest.raises(UserError, match=says):
            check_cut(NETWORKS[name], 10, columns)
    with pytest.raises(UserError, match="1 classes cannot be cut"):
        check_cut(NETWORKS["paper"], 1, 2)
    check_cut(NETWORKS["caffe"], 10, 1)
