"""Counts, exchanges, memory and differences, against numbers worked out apart from the code."""

import io
import json
import sys
from dataclasses import fields, replace
from itertools import permutations

import pytest
import torch
from rich.console import Console

import alexnet.cli
from alexnet.describe import (
    FLOAT_BYTES,
    describe_network,
    print_description,
    print_differences,
)
from alexnet.differences import ORIGINS, differences, facts, origin_of
from alexnet.errors import UserError
from alexnet.model import AlexNet
from alexnet.networks import (
    NETWORKS,
    PAPER,
    Conv,
    Dropout,
    Full,
    Network,
    Pool,
    ResponseNorm,
    SpatialNorm,
    change,
    find_network,
    map_steps,
)

every_network = pytest.mark.parametrize("name", NETWORKS)


def exchanges(name: str) -> dict[str, int]:
    found = describe_network(name).as_json()["exchanges"]
    return {exchange["before"]: exchange["bytes_per_image"] for exchange in found}


def sentences(name: str, other: str) -> list[str]:
    return [d.sentence for d in differences(find_network(name), find_network(other))]


def printed(width: int, print_it: object, *arguments: object) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_it(*arguments, console)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined]


def unfilled(name: str, num_classes: int) -> AlexNet:
    """The module with whatever is in memory as weights: only its shapes are wanted."""
    with torch.device("meta"):
        model = AlexNet(find_network(name), num_classes)
    return model.to_empty(device="cpu")


# --- Counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "source"])
def test_the_2012_net_has_the_known_totals(name: str) -> None:
    found = describe_network(name)
    assert found.parameters == 60_965_224
    assert found.neurons == 659_272
    assert found.macs == 724_406_816


def test_the_json_of_the_paper_has_the_layers_of_section_3_5() -> None:
    found = describe_network("paper").as_json()
    assert (found["network"], found["columns"], found["input"]) == ("paper", 2, [3, 224, 224])
    assert (found["parameters"], found["neurons"], found["macs"]) == (
        60_965_224,
        659_272,
        724_406_816,
    )
    layers = [(x["name"], x["output"], x["parameters"], x["macs"]) for x in found["layers"]]
    assert layers == [
        ("conv1", [96, 55, 55], 34_944, 105_415_200),
        ("conv2", [256, 27, 27], 307_456, 223_948_800),
        ("conv3", [384, 13, 13], 885_120, 149_520_384),
        ("conv4", [384, 13, 13], 663_936, 112_140_288),
        ("conv5", [256, 13, 13], 442_624, 74_760_192),
        ("fc6", [4096], 37_752_832, 37_748_736),
        ("fc7", [4096], 16_781_312, 16_777_216),
        ("fc8", [1000], 4_097_000, 4_096_000),
    ]


@pytest.mark.parametrize("name", ["source", "no-overlap", "cifar10-13pct"])
def test_the_outputs_of_a_layers_operations_are_those_of_the_module(name: str) -> None:
    found = describe_network(name, num_classes=7)
    model, images = unfilled(name, 7), torch.zeros(1, *found.input.output)
    for layer, (_, linear, after) in zip(found.layers, model._stages(images), strict=True):
        outputs = [operation.output for operation in layer.operations]
        assert outputs[0] == tuple(linear.shape[1:])
        assert tuple(after.shape[1:]) in outputs


@every_network
def test_the_json_says_the_same_as_its_layers(name: str) -> None:
    found = json.loads(json.dumps(describe_network(name, num_classes=17).as_json()))
    assert found["layers"][-1]["output"] == [17]
    for total in ("parameters", "neurons", "macs"):
        assert found[total] == sum(layer[total] for layer in found["layers"]), total
    of_layers = sum(layer["activation_bytes"] for layer in found["layers"])
    picture = FLOAT_BYTES * 3 * found["input"][1] * found["input"][2]
    assert found["activation_bytes"] == of_layers + picture


def test_an_activation_is_counted_once_for_every_operation() -> None:
    conv1 = describe_network("paper").layers[0]
    outputs = {operation.name: operation.output_bytes for operation in conv1.operations}
    assert outputs == {
        "96 kernels 11x11, stride 4, 3 px overhang": 4 * 290_400,
        "ReLU": 4 * 290_400,
        "response norm, 5 maps": 4 * 290_400,
        "max pool 3, stride 2": 4 * 69_984,
    }
    assert conv1.activation_bytes == sum(outputs.values())


# --- Between two GPUs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "source", "no-lrn", "tanh", "no-dropout"])
def test_both_columns_send_their_half_before_conv3_and_the_fully_connected_layers(
    name: str,
) -> None:
    half_of_pool2 = 128 * 13 * 13 * 4
    assert exchanges(name) == {
        "conv3": 2 * half_of_pool2,
        "fc6": 9216 * 4,
        "fc7": 4096 * 4,
        "fc8": 4096 * 4,
    }


def test_the_columns_meet_before_the_sixth_convolution_too() -> None:
    assert exchanges("sixth-conv") == exchanges("paper") | {"conv6": 256 * 6 * 6 * 4}


def test_each_rank_holds_its_columns_parameters_and_the_logits_cross_too() -> None:
    found = describe_network("paper").as_json()
    assert found["parameters_per_column"] == 2 * [60_965_224 // 2]
    assert found["logit_bytes"] == 4000
    odd = describe_network("paper", num_classes=7)
    assert odd.parameters_of(1) - odd.parameters_of(0) == 4097  # the one class more of column 1
    assert odd.parameters_of(0) + odd.parameters_of(1) == odd.parameters
    assert "30,482,612 and 30,482,612" in " ".join(
        printed(100, print_description, describe_network("paper")).split()
    )


def test_without_conv3_the_columns_meet_before_conv4() -> None:
    assert exchanges("no-conv3")["conv4"] == exchanges("paper")["conv3"]


@every_network
def test_nothing_crosses_in_a_network_of_one_column(name: str) -> None:
    found = describe_network(name)
    if found.network.columns > 1:
        assert found.exchange_bytes > 0
        return
    assert found.as_json()["exchanges"] == []
    assert found.as_json()["memory"]["each_of_two_gpus"] is None
    assert "reads" in found.as_json()["layers"][0]
    assert {layer.reads for layer in found.layers} == {""}


def test_layers_read_the_image_their_own_column_or_both() -> None:
    reads = {layer.name: layer.reads for layer in describe_network("paper").layers}
    assert reads == {
        "conv1": "image",
        "conv2": "own",
        "conv3": "both",
        "conv4": "own",
        "conv5": "own",
        "fc6": "both",
        "fc7": "both",
        "fc8": "both",
    }


# --- Memory ---------------------------------------------------------------------------------------


def test_training_memory_is_three_times_the_parameters_and_the_activations_of_the_batch() -> None:
    found = describe_network("paper", batch_size=100)
    memory = found.memory()
    assert memory.parameters == memory.gradients == memory.velocity == 4 * 60_965_224
    assert memory.activations == 100 * found.activation_bytes
    assert memory.total == 12 * 60_965_224 + 100 * found.activation_bytes


def test_each_of_two_gpus_has_half_of_the_parameters_the_whole_image_and_what_is_sent() -> None:
    found = describe_network("paper", batch_size=1)
    one, each = found.memory(), found.memory(2)
    assert 2 * each.parameters == one.parameters
    image = found.input.output_bytes
    assert each.activations == (one.activations - image) // 2 + image + found.exchange_bytes // 2


def test_an_odd_number_of_classes_makes_one_gpu_fuller() -> None:
    each = describe_network("paper", num_classes=11).memory(2).parameters // FLOAT_BYTES
    assert each == (60_965_224 - 4_097_000) // 2 + 6 * 4097


@pytest.mark.parametrize("name", ["paper", "source", "torchvision", "small", "cifar10-18pct"])
def test_what_pytorch_keeps_for_the_backward_pass_is_within_a_third(name: str) -> None:
    found = describe_network(name)
    model, images = unfilled(name, 1000), torch.zeros(1, *found.input.output)
    model.kernels = "plain"  # fused ones keep less
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(images)
    assert logits.requires_grad
    kept_bytes = sum(storage.nbytes() for storage in kept.values())
    assert found.activation_bytes / 1.34 < kept_bytes < found.activation_bytes * 1.34


# --- Differences ----------------------------------------------------------------------------------


def test_source_differs_from_paper_in_four_things_and_in_an_order_without_effect() -> None:
    assert sentences("source", "paper") == [
        "conv1: response norm of the linear output, then max pool, then ReLU; `paper` has ReLU, "
        "then response norm, then max pool",
        "conv5: max pool, then ReLU; `paper` has ReLU, then max pool (it makes no difference: a "
        "maximum and a rising nonlinearity commute)",
        "conv1, conv2: alpha 2e-05 for each square instead of 0.0001",
        "conv2: spatial norm (5x5, alpha 4e-05, beta 0.75, k 1) after the response norm; `paper` "
        "has none",
        "conv3, conv4, conv5: standard deviation 0.03 instead of 0.01",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no-dropout", ["fc6, fc7: no dropout; `paper` has dropout 0.5 after the ReLU"]),
        ("no-conv4", ["only `paper` has conv4 (384 kernels of 3x3)"]),
        ("sixth-conv", ["only `sixth-conv` has conv6 (256 kernels of 3x3)"]),
        (
            "no-columns",
            [
                "one column: every kernel reads all maps; `paper` has two columns (in conv2, "
                "conv4, conv5 of `paper` a kernel reads its own column's maps only)"
            ],
        ),
        (
            "no-lrn",
            [
                "conv1, conv2: no response norm; `paper` has response norm (5 maps, alpha 0.0001, "
                "beta 0.75, k 2) after the ReLU"
            ],
        ),
        (
            "tanh",
            ["conv1, conv2, conv3, conv4, conv5, fc6, fc7: tanh instead of ReLU"],
        ),
        (
            "no-overlap",
            [
                "conv2: padding 1 instead of 2",
                "conv5: padding 0 instead of 1",
                "conv2: maps of 26x26 instead of 27x27",
                "conv5: maps of 11x11 instead of 13x13",
                "conv1, conv2, conv5: window of 2 instead of 3",
            ],
        ),
        (
            "no-conv5",
            [
                "only `paper` has conv5 (256 kernels of 3x3)",
                "conv4: max pool (size 3, stride 2) after the ReLU; `paper` has none",
            ],
        ),
    ],
)
def test_an_ablation_differs_from_paper_in_what_it_is_about(name: str, expected: list[str]) -> None:
    assert sentences(name, "paper") == expected


def test_any_two_networks_differ_and_the_origin_of_every_choice_is_said() -> None:
    for name, other in permutations(NETWORKS, 2):
        found = differences(find_network(name), find_network(other))
        assert found, f"{name} and {other} do not differ"
        for difference in found:
            assert difference.text, difference
            if difference.kind != "map size":
                assert difference.origin, difference
                assert difference.other_origin, difference


def test_differences_are_the_same_ones_from_either_side() -> None:
    for here, there in permutations(NETWORKS.values(), 2):
        forth, back = differences(here, there), differences(there, here)
        assert {(d.kind, d.layers) for d in forth} == {(d.kind, d.layers) for d in back}


@every_network
def test_a_network_does_not_differ_from_itself(name: str) -> None:
    assert differences(find_network(name), find_network(name)) == []


def test_a_choice_is_credited_to_the_network_that_made_it() -> None:
    caffenet, source = find_network("caffenet"), find_network("source")
    assert origin_of(caffenet, ("conv1", "order")) == caffenet.source
    assert origin_of(caffenet, ("fc6", "dropout")).startswith("as in `caffe`, Caffe's dropout")
    assert origin_of(caffenet, ("conv3", "initial weights")).startswith("as in `paper`, Section 5")
    assert origin_of(source, ("conv3", "initial weights")).startswith("layers-145.cfg")
    assert origin_of(source, ("conv2", "initial weights")).startswith("as in `paper`, Section 5")


def test_the_origins_are_of_networks_and_facts_that_there_are() -> None:
    kinds = {kind for network in NETWORKS.values() for _, kind in facts(network)}
    assert {name for name, _ in ORIGINS} <= set(NETWORKS)
    assert {kind for _, kind in ORIGINS} <= kinds
    assert {kind for name, kind in ORIGINS if name == "paper"} == kinds - {"map size"}


def other_value(value: object) -> object:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case "max":
            return "avg"
        case int() | float():
            return value * 2 + 1
        case tuple():
            return tuple(other_value(part) for part in value)
    raise AssertionError(value)


@pytest.mark.parametrize("kind", [Conv, Full, ResponseNorm, SpatialNorm, Pool, Dropout, Network])
def test_every_field_of_a_description_makes_a_difference(kind: type) -> None:
    labels = {"name", "lineage", "source", "layers", "then"}
    for field in fields(kind):
        if field.name in labels:
            continue
        changed = _with_other(kind, field.name)
        assert differences(changed, find_network("source")), f"{kind.__name__}.{field.name}"


def _with_other(kind: type, name: str) -> Network:
    source = find_network("source")
    if kind is Network:
        return replace(
            source, **{name: 1 if name == "columns" else other_value(_get(source, name))}
        )
    if kind in (Conv, Full):
        layer = source.layer(
            "fc6" if kind is Full else "conv1" if name == "rounded_up" else "conv2"
        )
        return change(source, layer.name, **{name: other_value(_get(layer, name))})
    return map_steps(
        source,
        lambda step: (
            replace(step, **{name: other_value(_get(step, name))})
            if isinstance(step, kind)
            else step
        ),
    )


def _get(item: object, name: str) -> object:
    return getattr(item, name)


# --- What is printed ------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("width", [80, 100, 140])
def test_tables_fit_the_terminal_and_cut_nothing(name: str, width: int) -> None:
    texts = [printed(width, print_description, describe_network(name))]
    texts += [printed(width, print_differences, name, other) for other in ("paper", "source")]
    for text in texts:
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "…" not in text
    for layer in describe_network(name).layers:
        line = next(line for line in texts[0].splitlines() if line.startswith(layer.name))
        assert f"{layer.parameters:,}" in line


def test_the_table_shows_totals_exchanges_and_both_memories() -> None:
    text = printed(100, print_description, describe_network("paper"))
    for number in ("60,965,224", "659,272", "724,406,816", "173,056", "36,864", "242,688"):
        assert number in text
    assert [line.split()[1:] for line in text.splitlines() if line.startswith("velocity")] == [
        ["243.9", "MB", "121.9", "MB"]
    ]


def test_the_origin_stands_below_the_difference_and_the_totals_at_the_end() -> None:
    lines = printed(200, print_differences, "source", "paper").splitlines()
    texts = [line.strip() for line in lines]
    at = next(i for i, text in enumerate(texts) if "0.03 instead of 0.01" in text)
    assert texts[at + 1] == "`source`: layers-145.cfg, initW of conv3, conv4 and conv5"
    assert texts[at + 2] == "`paper`: Section 5, N(0, 0.01) in each layer"
    assert any(text.split() == ["parameters", *2 * ["60,965,224"], "none"] for text in texts)


def test_totals_are_compared_with_their_share() -> None:
    lines = printed(100, print_differences, "no-columns", "paper").splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line[:1].isalpha()}
    assert rows["parameters"] == ["62,378,344", "60,965,224", "+1,413,120", "(+2.3%)"]


# --- Mistakes -------------------------------------------------------------------------------------


def test_an_unknown_network_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'paper'"):
        describe_network("papr")
    with pytest.raises(UserError, match="did you mean 'source'"):
        describe_network("paper").as_json(diff="sorce")
    with pytest.raises(UserError, match="did you mean 'source'"):
        printed(80, print_differences, "paper", "sorce")


@pytest.mark.parametrize("settings", [{"num_classes": 1}, {"batch_size": 0}])
def test_a_network_without_classes_or_images_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="needs at least"):
        describe_network("paper", **settings)


def test_the_command_prints_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "alexnet describe source --diff paper --num-classes 10 --batch-size 64 --json"
    monkeypatch.setattr(sys, "argv", command.split())
    alexnet.cli.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["network"], found["diff"], found["num_classes"]) == ("source", "paper", 10)
    assert found["batch_size"] == 64
    assert [set(x) for x in found["exchanges"]] == 4 * [{"before", "bytes_per_image"}]
    assert {"kind", "layers", "text", "origin", "other_origin"} == set(found["differences"][0])


def test_differences_are_told_from_the_general_to_the_particular() -> None:
    kinds = [difference.kind for difference in differences(find_network("small"), PAPER)]
    assert list(dict.fromkeys(kinds)) == [
        "pictures",
        "kernels",
        "units",
        "geometry",
        "map size",
        "initial weights",
        "initial biases",
    ]
