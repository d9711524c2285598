"""A replayed step is the step; it is recorded anew when what it holds fast changes."""

import pytest
import torch
from torch import Tensor

from alexnet import step
from alexnet.errors import UserError
from alexnet.graph import STEPS_BEFORE, Replay, cuda_recorder


class Recording:
    """A graph for a CPU: it runs its function again, on the same tensors."""

    def __init__(self, run) -> None:
        self.run = run

    def replay(self) -> None:
        self.run()


class Learner:
    """w <- w - rate * sum of the images; the loss is w before."""

    def __init__(self) -> None:
        self.weight, self.rate, self.recordings = torch.zeros(()), 0.5, 0

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = self.weight.clone()
        self.weight.sub_(self.rate * (images.sum() + labels.sum()))
        return loss

    def record(self, run) -> Recording:
        self.recordings += 1
        before = self.weight.clone()
        run()  # recording runs nothing on a GPU
        self.weight.copy_(before)
        return Recording(run)


def test_replayed_steps_are_the_steps() -> None:
    plain, recorded = Learner(), Learner()
    replay = Replay(recorded.step, lambda: recorded.rate, recorded.record)
    for number in range(3 * STEPS_BEFORE):
        plain.rate = recorded.rate = 0.5 if number < 2 * STEPS_BEFORE else 0.25
        images, labels = torch.full((2, 3), float(number)), torch.tensor([number])
        assert torch.equal(replay(images, labels), plain.step(images, labels))
        assert torch.equal(recorded.weight, plain.weight)
    assert recorded.recordings == 1


def test_a_changed_rate_or_size_is_recorded_anew_and_losses_are_kept_apart() -> None:
    learner = Learner()
    replay = Replay(learner.step, lambda: learner.rate, learner.record)
    losses = [replay(torch.ones(2, 3), torch.zeros(1)) for _ in range(STEPS_BEFORE + 3)]
    assert learner.recordings == 1
    assert len({loss.item() for loss in losses}) == len(losses)
    learner.rate = 0.1
    for _ in range(STEPS_BEFORE + 1):
        replay(torch.ones(2, 3), torch.zeros(1))
    assert learner.recordings == 2
    for _ in range(STEPS_BEFORE + 1):
        replay(torch.ones(1, 3), torch.zeros(1))
    assert learner.recordings == 3


def test_rates_that_change_at_each_step_are_never_recorded() -> None:
    learner = Learner()
    replay = Replay(learner.step, lambda: learner.rate, learner.record)
    for number in range(10):
        learner.rate = 1.0 / (number + 1)
        replay(torch.ones(2, 3), torch.zeros(1))
    assert learner.recordings == 0


def test_a_graph_needs_a_gpu() -> None:
    assert not step.replays("auto", torch.device("cpu"))
    with pytest.raises(UserError, match="CUDA"):
        step.replays("on", torch.device("cpu"))


@pytest.mark.gpu
def test_a_cuda_graph_of_a_step_learns_what_the_step_learns() -> None:
    weights = [torch.zeros(8, device="cuda") for _ in range(2)]

    def learn(weight: Tensor):
        def run(images: Tensor, labels: Tensor) -> Tensor:
            weight.sub_(0.1 * (images.sum(0) + labels))
            return weight.sum()

        return run

    replay = Replay(learn(weights[0]), lambda: 0, cuda_recorder([]))
    for number in range(8):
        images = torch.full((2, 8), float(number), device="cuda")
        labels = torch.ones(8, device="cuda")
        torch.testing.assert_close(replay(images, labels), learn(weights[1])(images, labels))
    torch.testing.assert_close(weights[0], weights[1])
