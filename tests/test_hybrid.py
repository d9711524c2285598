"""Convolutions as replicas and cut fully connected layers together are the one-device network."""

import pytest
import torch

from alexnet.columns import cut_optimizer
from alexnet.hybrid import Hybrid, cut_hybrid
from alexnet.networks import Network
from alexnet.parallel import Ranks
from ranks import Crew
from test_columns import (
    CLASSES,
    IMAGES,
    assert_close,
    few_kernels,
    learn,
    make,
    optimizer_of,
    picture_batch,
)

STEPS = 4


def learn_as_hybrid(ranks: Ranks, network: Network, rounds: int | None) -> dict[str, object]:
    part = cut_hybrid(make(network), ranks.everyone)
    images, labels = picture_batch(network)
    optimizer = optimizer_of(part)
    cut_optimizer(optimizer, part)
    counts = [3, 0, 2, 1] if rounds == 3 else None  # as where pictures cannot be read
    share = part.take_share(len(images), counts)
    hybrid = Hybrid(part, rounds)
    found: dict[str, object] = {"losses": []}
    for step in range(STEPS):
        optimizer.zero_grad()
        ranks.journal.sent.clear()
        loss = hybrid.gradients(
            images[share], labels[share], lambda: torch.autocast("cpu", None, False)
        )
        found["losses"].append(ranks.everyone.sum(loss, "loss").item())
        if step == 0:
            gradients = {name: weight.grad.clone() for name, weight in part.named_parameters()}
            found["gradients"] = {n: part.merged(n, grad) for n, grad in gradients.items()}
        found["sent"] = dict(ranks.journal.sent)  # of the last step: the first has more
        optimizer.step()
    part.eval()
    found["logits"] = part(images).detach()
    found["weights"] = part.state_dict()
    return found


CASES = [("paper", 2, None), ("paper", 4, None), ("paper", 4, 1), ("paper", 4, 3)]
CASES += [("source", 2, None), ("one-gpu", 2, None), ("torchvision", 2, None)]


@pytest.mark.parametrize(("name", "size", "rounds"), CASES)
def test_the_hybrid_is_the_one_device_network_step_by_step(
    crew: Crew, name: str, size: int, rounds: int | None
) -> None:
    network = few_kernels(name, 1 if name in ("one-gpu", "torchvision") else 2)
    one = make(network)
    expected = learn(one, network, STEPS)
    one.eval()
    logits = one(picture_batch(network)[0]).detach()
    for found in crew.run(learn_as_hybrid, network, rounds, size=size, way="hybrid"):
        assert_close(found["gradients"], expected["gradients"])
        assert_close(found["weights"], expected["weights"])
        torch.testing.assert_close(found["logits"], logits, rtol=1e-10, atol=1e-11)
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-12)


@pytest.mark.parametrize(("size", "rounds"), [(2, None), (4, None), (4, 1)])
def test_the_ranks_exchange_what_the_module_says(crew: Crew, size: int, rounds: int | None) -> None:
    network = few_kernels("paper")
    model = make(network)
    every = crew.run(learn_as_hybrid, network, rounds, size=size, way="hybrid")
    sent = {name: sum(rank["sent"][name] for rank in every) for name in every[0]["sent"]}
    expected = {"logits": 8 * (size - 1) * CLASSES * IMAGES}
    for name, layer in (("maps", "fc6"), ("fc7", "fc7"), ("fc8", "fc8")):
        reads = model.get_submodule(layer).in_features
        for way in ("forward", "backward"):
            expected[f"{name} {way}"] = 8 * (size - 1) * reads * IMAGES
    convolutions = sum(w.numel() for n, w in model.named_parameters() if n.startswith("conv"))
    expected["gradients"] = 2 * (size - 1) * 8 * convolutions
    expected["labels"] = 8 * (size - 1) * IMAGES
    for name in ("replicas begin", "loss"):
        sent.pop(name, None)
    assert sent.keys() == expected.keys()
    for name, count in expected.items():
        assert sent[name] == pytest.approx(count, abs=size), name  # halves of bytes are cut off
