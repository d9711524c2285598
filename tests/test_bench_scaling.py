"""What is read off measurements before a step on several devices is predicted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.bench_scaling import fit_link, fit_links, fit_speed, foresee, run_ranks
from alexnet.cli_scaling import bench_scaling
from alexnet.errors import UserError
from alexnet.parallel import parse
from alexnet.scaling import Link, Speed, crossings

SIZES = (65_536, 1_048_576, 67_108_864)


@given(latency=st.floats(1e-6, 1e-2), bandwidth=st.floats(1e6, 1e12))
def test_a_link_is_read_off_what_its_exchanges_take(latency: float, bandwidth: float) -> None:
    seconds = [3 * latency + size / bandwidth for size in SIZES]
    link = fit_link(SIZES, seconds, messages=3)
    assert link.latency_seconds == pytest.approx(latency, rel=1e-3, abs=1e-9 * seconds[0])
    assert [link.seconds(size, 3) for size in SIZES] == pytest.approx(seconds, rel=1e-6)


def test_a_sum_moves_twice_what_a_gather_moves() -> None:
    took = {str(size): size / 1e9 for size in SIZES}
    links = fit_links([{"gather": took, "return_sum": took, "sum": took}] * 4, 4)
    assert links.gather.bytes_per_second == pytest.approx(0.75e9)
    assert links.return_sum.bytes_per_second == pytest.approx(0.75e9)
    assert links.sum.bytes_per_second == pytest.approx(1.5e9)


def test_a_device_is_as_fast_as_the_slowest_process() -> None:
    speed = fit_speed([{"8": 1.0, "16": 1.5}, {"8": 1.1, "16": 1.9}])
    assert speed.seconds_per_image == pytest.approx(0.1)
    assert speed.seconds_per_step == pytest.approx(0.3)


def test_noise_leaves_no_negative_time() -> None:
    speed = fit_speed([{"8": 2.0, "16": 1.6}])
    assert speed == Speed(0.0, 0.1)


def test_a_batch_grows_with_the_devices_unless_it_is_the_papers() -> None:
    speed, link = Speed(0.0, 2e-5), Link(0.0, 1e12)
    same = foresee("paper", [1, 4], 128, speed, link)
    grown = foresee("paper", [1, 4], 128, speed, link, strict=False)
    assert {found.batch_size for found in same} == {128}
    assert {found.batch_size for found in grown} == {128, 512}
    assert {str(found.plan) for found in grown} == {"one rank", "data=4", "columns=2,data=2"} | {
        "hybrid"
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", ["columns=2", "data=2", "hybrid"])
def test_two_processes_exchange_what_is_predicted(way: str) -> None:
    task = {"task": "step", "network": "paper", "num_classes": 10, "precision": "fp32"}
    task |= {"threads": 1, "steps": 1, "batch_size": 4, "parallel": way}
    sent = [rank["sent_bytes"] for rank in run_ranks(2, task)]
    found = crossings("paper", parse(way, 2), 4, num_classes=10)
    wanted = sum(crossing.received_bytes for crossing in found)
    assert sent == [wanted, wanted]


@pytest.mark.slow
def test_processes_that_fail_leave_one_line() -> None:
    task = {"task": "step", "network": "one-gpu", "num_classes": 10, "precision": "fp32"}
    task |= {"threads": 1, "steps": 1, "batch_size": 4, "parallel": "columns=2"}
    with pytest.raises(UserError, match="one column"):
        run_ranks(2, task)


def test_the_command_predicts_for_devices_that_are_not_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench_scaling(
        "paper",
        [1, 8],
        128,
        precision="fp32",
        images_per_second=10_000,
        link_gb_per_s=25,
        batch_for_each=True,
        as_json=True,
    )
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [plan["devices"] for plan in plans] == [1, 8, 8, 8]
    assert plans[0]["images_per_second"] == pytest.approx(10_000)
    assert all(10_000 < plan["images_per_second"] <= 80_000 for plan in plans[1:])


@pytest.mark.parametrize(("speed", "link"), [(10_000.0, 0.0), (0.0, 25.0), (-1.0, -1.0)])
def test_a_speed_and_a_link_are_given_together(speed: float, link: float) -> None:
    with pytest.raises(UserError):
        bench_scaling(
            "paper",
            [2],
            128,
            precision="fp32",
            images_per_second=speed,
            link_gb_per_s=link,
            batch_for_each=False,
            as_json=False,
        )
