"""Rivals take turns, and every figure stands beside its floor."""

import sys

import pytest

from alexnet.bench_layers import bench_layers
from alexnet.bench_step import bench, forward_flop, training_flop
from alexnet.errors import UserError
from alexnet.turns import Rival, measure

CHILD = """
import sys, time
from alexnet.turns import serve
def prepare():
    return (lambda: {work}), {{"versions": {{"child": "1"}}}}
serve(prepare)
"""


def child(work: str, *, slow: bool = False) -> Rival:
    return Rival((sys.executable, "-c", CHILD.format(work=work)), slow=slow)


def test_the_floor_counts_the_operations_of_the_paper_s_network() -> None:
    assert forward_flop("paper") == 2 * 724_406_816
    assert training_flop("paper") == 4_135_610_496  # 4.136 GFLOP, without conv1's input gradient
    assert forward_flop("torchvision") == pytest.approx(2 * 714.2e6, rel=1e-3)


def test_rivals_take_turns_and_one_that_cannot_start_or_dies_is_named() -> None:
    rivals = {
        "quick": child("0.5"),
        "slow": child("time.sleep(0.01) or 1.5", slow=True),
        "absent": Rival((sys.executable, "-c", "import nothing_of_that_name")),
    }
    said: list[str] = []
    found = measure(rivals, rounds=3, repeats=2, images=10, say=said.append)
    assert len(found["rows"]["quick"]["seconds"]) == 6
    assert len(found["rows"]["slow"]["seconds"]) == 2
    assert found["rows"]["slow"]["images_per_second"] <= 1000
    assert found["rows"]["quick"]["values"] == [0.5] * 6
    assert found["rows"]["quick"]["peak_bytes"] > 0
    assert "nothing_of_that_name" in found["missing"]["absent"]


@pytest.mark.parametrize("what", ["step", "evaluate", "train"])
def test_a_peer_that_is_not_known_is_refused(what: str) -> None:
    with pytest.raises(UserError, match="no peer 'fast'"):
        bench(what, peers=["fast"])


def test_each_layer_stands_beside_its_floor() -> None:
    found = bench_layers("small", batch_size=2, rounds=1, precisions=["fp32"])
    rows = found["layers"]["fp32"]
    assert list(rows)[:2] == ["conv1", "conv1's norm, pool"]
    assert rows["conv1"]["input_gradient"] == 0.0  # nobody needs it
    assert rows["conv2"]["input_gradient"] > 0.0
    assert all(row["floor"] > 0 for row in rows.values())
    assert rows["sum"]["seconds"] == pytest.approx(
        sum(row["seconds"] for name, row in rows.items() if name != "sum")
    )
