"""`alexnet train DATA --from MODEL`: layers copied by name and shape, new ones, frozen ones."""

import shutil
from pathlib import Path

import pytest
import torch

import alexnet as package
import fabricate
from alexnet import checkpoint
from alexnet.augment import Preprocessing
from alexnet.config import from_dict, override
from alexnet.errors import UserError
from alexnet.files import read_json, sha256_of
from alexnet.finetune import begin_from, copy_layers
from alexnet.model import build
from alexnet.networks import NETWORKS
from alexnet.optim import parameter_groups
from alexnet.recipes import find_recipe
from alexnet.schedule import TABLES, ScheduleConfig, make_schedule, set_rates
from alexnet.step import start
from alexnet.trained import TrainedAlexNet
from alexnet.weights import load, save_model
from fabricate import alexnet, refusal
from test_weights import card_of

QUICK = ("--no-report", "--batch-size", "16", "--device", "cpu", "--set", "system.threads=1")
OTHER_CLASSES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `small` network for 64-pixel pictures of the four colours."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    model = build("small", 4, torch.Generator().manual_seed(5))
    card = card_of(class_ids=fabricate.CLASSES, class_names=fabricate.CLASSES)
    save_model(folder / "model.safetensors", model, card)
    return folder


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate.pictures(tmp_path_factory.mktemp("animals") / "pictures", OTHER_CLASSES)


@pytest.fixture(scope="module")
def tuned(weights: Path, animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("tuned") / "run"
    with fabricate.shared_cache(tmp_path_factory):
        frozen = ("--set", "optimizer.frozen=conv1,conv2")
        finished = alexnet(
            *("train", animals, "--from", weights, "--run", run, *QUICK, "--max-steps", "4"),
            *frozen,
        )
    assert finished.code == 0, finished
    assert "conv1 conv2 conv3 conv4 conv5 fc6 fc7; new: fc8" in finished.out
    return run


def test_layers_are_copied_and_the_last_is_new_for_other_classes(
    tuned: Path, weights: Path
) -> None:
    before, after = load(weights), load(tuned)
    assert after.card.class_names == OTHER_CLASSES
    assert after.num_classes == 3
    for layer in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            name = f"{layer}.{kind}"
            assert torch.equal(before.get_parameter(name), after.get_parameter(name)), name
    for layer in ("conv3", "fc7"):
        old, new = (m.get_parameter(f"{layer}.weight") for m in (before, after))
        assert not torch.equal(old, new)
        # Four steps at a thousandth leave a copied layer near where it was.
        assert (old - new).norm() < 0.05 * old.norm()


def test_recipe_environment_and_weights_say_what_they_came_from(tuned: Path, weights: Path) -> None:
    recipe = from_dict(read_json(tuned / "recipe.json"))
    assert recipe.name == "finetune"
    assert recipe.network.name == "small"
    assert recipe.network.weights == str(weights)
    assert (recipe.data.image_px, recipe.augment.crop_px) == (64, 56)
    origin = read_json(tuned / "environment.json")["from"]
    assert origin == load(tuned).card.origin
    assert origin["sha256"] == sha256_of(weights / "model.safetensors")
    assert origin["network"] == "small"
    assert origin["dataset"] == "pets"
    assert origin["new"] == ["fc8"]


def test_the_mean_image_and_colours_are_those_of_the_new_pictures(
    tuned: Path, weights: Path
) -> None:
    data = package.weights.load(tuned).card  # type: ignore[attr-defined]
    environment = read_json(tuned / "environment.json")
    packed = fabricate_packed(environment["data_path"])
    assert torch.equal(data.preprocessing.mean_image, torch.from_numpy(packed.mean_image))
    assert torch.equal(data.eigenvalues, torch.from_numpy(packed.eigenvalues))
    other = load(weights).card.preprocessing.mean_image
    assert not torch.equal(data.preprocessing.mean_image, other)


def fabricate_packed(path: str):  # type: ignore[no-untyped-def]
    from alexnet.dataset import open_packed

    return open_packed(Path(path)).statistics


def test_a_resumed_fine_tuning_is_the_one_that_was_not_stopped(
    weights: Path, animals: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "weights"
    shutil.copytree(weights, gone)
    command = ("train", animals, "--from", gone, *QUICK, "--epochs", "30")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert alexnet(*command, "--run", whole, "--max-steps", "9").code == 0
    assert alexnet(*command, "--run", parts, "--max-steps", "4").code == 0
    shutil.rmtree(gone)  # a checkpoint needs the weights that it began with no more
    finished = alexnet("train", "--resume", "--run", parts, "--no-report", "--max-steps", "9")
    assert finished.code == 0, finished
    expected, found = load(whole), load(parts)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    assert found.card.origin == expected.card.origin | {
        "fine_tuned_from": str(gone / "model.safetensors")
    }
    newest = [checkpoint.load_newest(run / "checkpoints", print) for run in (whole, parts)]
    groups = [state["optimizer"]["param_groups"] for state in newest]
    assert [[g["new"] for g in part] for part in groups] == [[False] * 14 + [True] * 2] * 2


def trained(network: str, class_ids: tuple[str, ...]) -> TrainedAlexNet:
    card = card_of(network, class_ids=class_ids, class_names=class_ids)
    model = TrainedAlexNet(NETWORKS[network], len(class_ids))
    model.reset_parameters(torch.Generator().manual_seed(1))
    model.card = card
    return model


def test_the_same_classes_in_another_order_keep_their_rows() -> None:
    source = trained("small", ("a", "b", "c"))
    model = build("small", 3)
    assert copy_layers(model, source, ("c", "a", "b")) == list(model.layer_names)
    for kind in ("weight", "bias"):
        found, expected = model.get_parameter(f"fc8.{kind}"), source.get_parameter(f"fc8.{kind}")
        assert torch.equal(found, expected[[2, 0, 1]])


def test_as_many_other_classes_get_a_new_last_layer() -> None:
    source, model = trained("small", ("a", "b", "c")), build("small", 3)
    before = model.get_parameter("fc8.weight").clone()
    assert copy_layers(model, source, ("a", "b", "x")) == list(model.layer_names[:-1])
    assert torch.equal(model.get_parameter("fc8.weight"), before)


def test_what_stands_behind_a_new_layer_is_new() -> None:
    """Run 146 took conv1 to conv5 of run 145, and not fc6, which there reads another layer."""
    with torch.device("meta"):
        source, model = TrainedAlexNet(NETWORKS["paper"], 10), build("sixth-conv", 10)
    source.card = card_of("small", class_ids=tuple("abcdefghij"), class_names=tuple("abcdefghij"))
    assert copy_layers(model, source, tuple("abcdefghij")) == [*(f"conv{n}" for n in range(1, 6))]


def test_velocities_begin_at_zero_and_new_layers_are_marked(weights: Path, animals: Path) -> None:
    recipe = override(find_recipe("shapes"), "data.num_train=8")
    recipe = override(override(recipe, "data.num_val=8"), "data.num_classes=4")
    from alexnet.opening import open_dataset

    dataset = open_dataset("shapes", image_px=64, num_train=8, num_val=8, num_classes=4)
    training = start(recipe, dataset)
    begin_from(training, str(weights), dataset.class_ids)
    assert not training.optimizer.state_dict()["state"]
    marked = {g["layer"] for g in training.optimizer.param_groups if g["new"]}
    assert marked == {"fc8"}


def test_weights_of_which_no_layer_fits_are_one_line(
    weights: Path, animals: Path, tmp_path: Path
) -> None:
    said = refusal("train", animals, "--from", weights, "--recipe", "pictures", *QUICK)
    assert "is network small, and none of its layers fits network source" in said
    said = refusal("train", animals, "--from", tmp_path / "none", *QUICK)
    assert "is not there" in said
    (tmp_path / "x.safetensors").write_bytes(b"hello")
    assert "is damaged" in refusal("train", animals, "--from", tmp_path / "x.safetensors", *QUICK)
    both = ("--from", weights, "--resume", "--run", tmp_path)
    assert "not both" in refusal("train", animals, *both)
    assert "needs pictures" in refusal("train", "--from", weights)
    everything = ("--set", "optimizer.frozen=conv,fc")
    assert "every layer is frozen" in refusal("train", animals, "--from", weights, *everything)
    typo = ("--set", "optimizer.frozen=conv9")
    said = refusal("train", animals, "--from", weights, *typo)
    assert "a rate is set for 'conv9', but no layer; did you mean" in said
    wrong = ("--set", "optimizer.layer_lr=conv=3")
    assert "is a list like" in refusal("train", animals, "--from", weights, *wrong)


# --- Rates ----------------------------------------------------------------------------------------


def test_rates_of_layers_are_multiplied_and_zero_freezes() -> None:
    model = build("small", 3)
    factors = {"conv": 0.1, "conv1": 0.0, "fc8": 10.0}
    groups = parameter_groups(model, lr=0.01, bias_lr=0.02, layer_lr=factors)
    rates = {(g["layer"], g["kind"]): g["base_lr"] for g in groups}
    assert rates["conv1", "weight"] == rates["conv1", "bias"] == 0
    assert rates["conv3", "weight"] == pytest.approx(0.001)
    assert rates["conv3", "bias"] == pytest.approx(0.002)
    assert rates["fc7", "weight"] == 0.01
    assert rates["fc8", "bias"] == pytest.approx(0.2)
    with pytest.raises(UserError, match="every layer is frozen"):
        parameter_groups(model, layer_lr={"conv": 0.0, "fc": 0.0})


def test_the_rates_of_fine_tuning_are_those_of_run_146_2012_2011() -> None:
    """Rates of (conv1, conv2, a new fc8) by epoch, from the notes of the source."""
    schedule = make_schedule(ScheduleConfig(kind="epochs", table="source-finetune", epochs=54))
    groups = parameter_groups(build("small", 3), lr=0.001, bias_lr=0.002)
    for group in groups:
        group["new"] = group["layer"] == "fc8"
    noted = {
        0: (1e-4, 1e-3, 1e-3),
        1: (1e-4, 1e-3, 1e-2),
        5: (1e-5, 1e-3, 1e-2),
        7: (0, 1e-3, 1e-2),
        9: (0, 1e-3, 1e-3),
        22: (0, 1e-4, 1e-4),
        42: (0, 1e-5, 1e-5),
    }
    for epoch, expected in noted.items():
        set_rates(groups, schedule.rates(epoch))
        found = {g["layer"]: g["lr"] for g in groups if g["kind"] == "weight"}
        assert (found["conv1"], found["conv2"], found["fc8"]) == pytest.approx(expected), epoch
    assert schedule.rates(37).colour_noise
    assert not schedule.rates(38).colour_noise
    assert TABLES["source-finetune"].epochs == 54


def test_copied_layers_alone_do_not_follow_what_new_ones_do() -> None:
    schedule = make_schedule(ScheduleConfig(kind="epochs", table="source-finetune", epochs=54))
    rates = schedule.rates(1)
    assert rates.share("fc8", "weight") == 1
    assert rates.share("fc8", "weight", new=True) == 10
    assert rates.share("conv1", "weight", new=True) == pytest.approx(0.1)


def test_preprocessing_of_the_weights_decides_the_sizes(animals: Path, tmp_path: Path) -> None:
    mean_image = torch.zeros(48, 48, 3)
    preprocessing = Preprocessing(mean_image, 32, "crop")
    card = card_of("cifar10-80sec", preprocessing=preprocessing, views=(1,))
    save_model(tmp_path / "model.safetensors", build("cifar10-80sec", 3), card)
    run = tmp_path / "run"
    finished = alexnet(
        "train", animals, "--from", tmp_path, "--run", run, *QUICK, "--max-steps", "1"
    )
    assert finished.code == 0, finished
    recipe = from_dict(read_json(run / "recipe.json"))
    assert (recipe.data.image_px, recipe.augment.crop_px, recipe.augment.mean) == (48, 32, "crop")
    assert recipe.evaluate.views == "1"
