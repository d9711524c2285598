"""What crosses between devices, counted by hand, and the step that follows from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.describe import describe_network
from alexnet.errors import UserError
from alexnet.networks import find_network
from alexnet.parallel import Plan
from alexnet.scaling import Link, Links, Speed, crossings, plans, predict_step

# Units before the layers where the two columns meet: pool2, pool5, fc6, fc7 (Figure 2).
MEETING_UNITS = 256 * 13 * 13 + 256 * 6 * 6 + 4096 + 4096
CONV_PARAMETERS = 34_944 + 307_456 + 885_120 + 663_936 + 442_624
PARAMETERS = 60_965_224
NO_COST = Links.alike(Link(0.0, float("inf")))


def received(plan: Plan, batch_size: int = 128, network: str = "paper") -> float:
    return sum(c.received_bytes for c in crossings(network, plan, batch_size))


def test_one_device_receives_nothing() -> None:
    assert crossings("paper", Plan(1), 128) == []


def test_a_column_receives_the_other_halves_and_its_logits() -> None:
    there_and_back = 2 * 128 * MEETING_UNITS * 4 / 2
    assert received(Plan(columns=2)) == there_and_back + 128 * 1000 * 4 / 2


@pytest.mark.parametrize("network", ["paper", "source", "sixth-conv"])
def test_columns_cross_as_many_bytes_forward_as_describe_says(network: str) -> None:
    found = crossings(network, Plan(columns=2), 1)
    forward = sum(c.received_bytes for c in found if c.what.endswith(", forward"))
    logits = 1000 * 4 / 2
    assert 2 * (forward - logits) == describe_network(network).exchange_bytes


def test_replicas_sum_gradients_in_a_ring_whatever_the_batch() -> None:
    for devices in (2, 4, 8):
        wanted = 2 * (devices - 1) / devices * PARAMETERS * 4
        assert received(Plan(devices), 128) == pytest.approx(wanted, rel=1e-12)
        assert received(Plan(devices), 1024) == pytest.approx(wanted, rel=1e-12)


def test_columns_and_replicas_sum_a_columns_gradients_alone() -> None:
    found = crossings("paper", Plan(2, columns=2), 128)
    ring = [c for c in found if c.kind == "sum"]
    assert [c.received_bytes for c in ring] == [PARAMETERS / 2 * 4]
    assert received(Plan(2, columns=2)) - ring[0].received_bytes == pytest.approx(
        received(Plan(columns=2), 64)
    )


def test_the_hybrid_sends_activations_of_the_fully_connected_layers_instead_of_weights() -> None:
    found = crossings("paper", Plan(4, hybrid=True), 512)
    ring = sum(c.received_bytes for c in found if c.kind == "sum")
    assert ring == pytest.approx(1.5 * CONV_PARAMETERS * 4)
    rest = sum(c.received_bytes for c in found if c.kind != "sum")
    assert rest == pytest.approx(0.75 * 512 * (4 * (2 * (9216 + 4096 + 4096) + 1000) + 8))
    assert ring + rest < received(Plan(4), 512)


def test_without_communication_devices_divide_the_images() -> None:
    speed = Speed(seconds_per_step=0.0, seconds_per_image=0.01)
    for devices in (1, 2, 4):
        for plan in plans(find_network("paper"), devices):
            step = predict_step("paper", plan, 128, speed, NO_COST)
            assert step.images_per_second == pytest.approx(100 * devices), plan


def test_gradients_hide_behind_the_backward_pass_and_no_further() -> None:
    speed, link = Speed(0.0, 0.01), Links.alike(Link(0.0, 1e9))
    whole = predict_step("paper", Plan(2), 128, speed, link)
    hidden = predict_step("paper", Plan(2), 128, speed, link, overlap=1.0)
    slow = predict_step("paper", Plan(2), 128, speed, Links.alike(Link(0.0, 1e8)), overlap=1.0)
    assert whole.exposed_seconds == pytest.approx(PARAMETERS * 4 / 1e9)
    assert hidden.exposed_seconds == 0
    backward = 0.01 * 64 * (4.1356 - 2 * 0.7244) / 4.1356  # GFLOP of a step, and of its forward
    assert slow.exposed_seconds == pytest.approx(PARAMETERS * 4 / 1e8 - backward, rel=1e-3)


def test_hybrid_updates_the_convolutions_whole_and_its_slice_of_the_rest() -> None:
    step = predict_step("paper", Plan(4, hybrid=True), 128, Speed(1.0, 0.0), NO_COST)
    held = CONV_PARAMETERS + (PARAMETERS - CONV_PARAMETERS) / 4
    assert step.compute_seconds == pytest.approx(held / PARAMETERS)


@given(devices=st.sampled_from([2, 4, 8, 16]), gigabytes=st.floats(0.01, 1000))
def test_a_faster_link_never_slows_a_step(devices: int, gigabytes: float) -> None:
    speed = Speed(0.001, 0.001)
    slow_link = Links.alike(Link(1e-5, gigabytes * 1e9))
    fast_link = Links.alike(Link(1e-5, gigabytes * 2e9))
    for plan in plans(find_network("paper"), devices):
        slow = predict_step("paper", plan, 1024, speed, slow_link)
        fast = predict_step("paper", plan, 1024, speed, fast_link)
        assert fast.step_seconds <= slow.step_seconds


@pytest.mark.parametrize(
    ("network", "plan", "batch_size", "says"),
    [
        ("one-gpu", Plan(columns=2), 128, "has 1 columns"),
        ("paper", Plan(8), 4, "too small for 8"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    network: str, plan: Plan, batch_size: int, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        crossings(network, plan, batch_size)


def test_names_say_what_a_user_types() -> None:
    names = [str(plan) for plan in plans(find_network("paper"), 4)]
    assert names == ["data=4", "columns=2,data=2", "hybrid"]
