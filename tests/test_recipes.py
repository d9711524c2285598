"""Each named recipe is a diff of another one, fits its network, and says the sources' numbers."""

import pytest

from alexnet.config import check, differences
from alexnet.errors import UserError
from alexnet.networks import find_network
from alexnet.recipes import RECIPES, find_recipe
from alexnet.schedule import TABLES, make_schedule


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_found_under_its_own_name_and_explains_itself(name: str) -> None:
    assert find_recipe(name).name == name
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_each_value_of_a_recipe_can_be(name: str) -> None:
    recipe = check(find_recipe(name))
    make_schedule(recipe.schedule)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_network(name: str) -> None:
    recipe = find_recipe(name)
    network = find_network(recipe.network.name)
    assert recipe.augment.crop_px == network.input_px
    for key in recipe.layer_weight_decay:
        assert any(layer.startswith(key) for layer in network.layer_names), key


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_back_to_the_paper(name: str) -> None:
    lineage = [name]
    while base := find_recipe(lineage[-1]).base:
        assert base not in lineage, lineage
        lineage.append(base)
    assert lineage[-1] == "paper-2012"


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no recipe 'sorce-2012'; did you mean 'source-2012'"):
        find_recipe("sorce-2012")


def test_the_source_differs_from_the_paper_in_these_settings_alone() -> None:
    changed = differences(find_recipe("paper-2012"), find_recipe("source-2012"))
    assert {path: there for path, (_, there) in changed.items()} == {
        "network.name": "source",
        "data.order": "fixed",
        "augment.crop_chunk": 32,
        "augment.mean": "centre",
        "augment.colour": "source",
        "optimizer.bias_lr": 0.02,
        "optimizer.bias_weight_decay": 0.0,
        "schedule.kind": "epochs",
        "schedule.epochs": 91.0,
    }


@pytest.mark.parametrize(("name", "epochs"), [("source-2010", 93), ("source-2012", 91)])
def test_a_hand_made_table_is_as_long_as_its_training(name: str, epochs: int) -> None:
    schedule = find_recipe(name).schedule
    assert schedule.epochs == epochs == TABLES[schedule.table].epochs


def test_a_folder_sorted_by_class_is_shuffled() -> None:
    assert find_recipe("pictures").data.order == "shuffled"
    assert find_recipe("imagenette").data.order == "shuffled"


def test_the_cifar10_trainings_take_what_the_2012_files_say() -> None:
    for name in ("cifar10-80sec", "cifar10-18pct", "cifar10-13pct", "cifar10-11pct"):
        optimizer = find_recipe(name).optimizer
        assert (optimizer.lr, optimizer.bias_lr, optimizer.batch_size) == (0.001, 0.002, 128), name
        assert (optimizer.momentum, optimizer.bias_weight_decay) == (0.9, 0.0), name
    decay = {name: find_recipe(name).optimizer.layer_weight_decay for name in RECIPES}
    assert decay["cifar10-80sec"] == "conv:0.004,fc:0.03"
    assert decay["cifar10-18pct"] == "conv:0.004,fc:1"
    assert decay["cifar10-13pct"] == "conv:0,local:0.004,fc:0.004"
    assert decay["cifar10-11pct"] == "conv:0,local:0.004,fc:0.01"


def test_figure_1_compares_two_nets_that_differ_in_the_nonlinearity_alone() -> None:
    solid, dashed = find_recipe("cifar10-figure1"), find_recipe("cifar10-figure1-tanh")
    assert set(differences(solid, dashed)) == {"network.name"}
    assert solid.optimizer.weight_decay == 0


def test_the_built_in_training_has_at_least_16_classes_and_unseen_pictures() -> None:
    data = find_recipe("shapes").data
    assert data.dataset == "shapes"
    assert data.num_classes >= 16
    assert data.num_val >= 1000
