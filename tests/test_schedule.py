"""The paper's plateau rule and the source's tables and formulas, against the source's numbers."""

import io
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from alexnet.errors import UserError
from alexnet.optim import PaperSGD, parameter_groups
from alexnet.schedule import (
    KINDS,
    TABLES,
    Rates,
    Schedule,
    ScheduleConfig,
    dexp,
    exp,
    jdexp,
    linear,
    make_schedule,
    noise_factor,
    set_rates,
)

progresses = st.floats(0.0, 1.0)
factors = st.floats(1.0, 1e6)
step_counts = st.integers(1, 12)
error_lists = st.lists(st.sampled_from([0.1, 0.2, 0.21, 0.3, 0.4, math.nan]), max_size=40)


def plateau(**settings_: float) -> Schedule:
    return make_schedule(ScheduleConfig(kind="plateau", **settings_))


def table(name: str, **settings_: float) -> Schedule:
    settings_ = {"epochs": TABLES[name].epochs, **settings_}
    return make_schedule(ScheduleConfig(kind="epochs", table=name, **settings_))


# Plateau


def test_three_evaluations_that_are_no_better_drop_the_rate_when_patience_is_three():
    schedule = plateau(patience=3)
    observed = [0.9, 0.8, 0.8, 0.85, 0.79, 0.8, 0.8, 0.79]
    dropped = [schedule.observe(error) for error in observed]
    assert dropped == [False] * 7 + [True]
    rates = schedule.rates(epoch=8)
    assert (rates.weights, rates.biases, rates.colour_noise) == (0.1, 0.1, True)
    assert "drop 1 of 3" in rates.reason
    assert "79.00 %" in rates.reason


def test_the_rate_drops_three_times_and_never_again():
    schedule = plateau(patience=2)
    drops = [n for n in range(1, 31) if schedule.observe(0.5)]
    assert drops == [3, 5, 7]  # The first evaluation sets the best.
    assert schedule.rates(30).weights == pytest.approx(1e-3, rel=1e-12)


def test_where_an_epoch_has_few_steps_the_rate_drops_later():
    """Five evaluations in a row are five steps where all pictures fit into one minibatch."""
    schedule = plateau(patience=5, patience_steps=100)
    drops = [n for n in range(1, 400) if schedule.observe(0.5, steps=1)]
    assert drops == [101, 201, 301]
    schedule = plateau(patience=5, patience_steps=100)
    assert [n for n in range(1, 40) if schedule.observe(0.5, steps=1000)] == [6, 11, 16]


def test_small_gains_count_once_they_add_up_to_more_than_min_improvement():
    schedule = plateau(patience=3, min_improvement=0.01)
    observed = [0.500, 0.496, 0.492, 0.488, 0.484, 0.480, 0.476]
    assert not any(schedule.observe(error) for error in observed)
    assert schedule.state_dict() == {
        "best": 0.476,
        "bad_evaluations": 0,
        "bad_steps": 0.0,
        "drops": 0,
    }
    assert [schedule.observe(0.467) for _ in range(3)] == [False, False, True]


def test_an_error_that_is_not_a_number_is_no_improvement():
    schedule = plateau(patience=2)
    assert [schedule.observe(error) for error in (0.5, math.nan, math.nan)] == [False, False, True]
    assert schedule.state_dict()["best"] == 0.5


def drops_by_hand(errors: list[float], patience: int, margin: float, limit: int) -> list[int]:
    """Positions of drops, by looking back over the whole history each time."""
    drops: list[int] = []
    for n in range(len(errors)):
        best, last_event = math.inf, -1
        for i, error in enumerate(errors[: n + 1]):
            if best - error > margin:
                best, last_event = error, i
            if i in drops:
                last_event = i
        if n - last_event >= patience and len(drops) < limit:
            drops.append(n)
    return drops


@given(errors=error_lists, patience=st.integers(1, 4), margin=st.sampled_from([0.0, 0.05]))
def test_the_plateau_rule_agrees_with_a_look_back_over_the_history(errors, patience, margin):
    schedule = plateau(patience=patience, min_improvement=margin)
    dropped = [n for n, error in enumerate(errors) if schedule.observe(error)]
    assert dropped == drops_by_hand(errors, patience, margin, limit=3)


@given(errors=error_lists, cut=st.integers(0, 40), patience=st.integers(1, 4))
def test_a_saved_plateau_schedule_continues_as_if_never_interrupted(errors, cut, patience):
    whole, first, second = (plateau(patience=patience) for _ in range(3))
    for error in errors[:cut]:
        first.observe(error)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    halves = [second.observe(error) for error in errors[cut:]]
    assert [whole.observe(error) for error in errors][cut:] == halves
    assert whole.rates(1.0) == second.rates(1.0)


def test_the_state_of_another_kind_of_schedule_is_refused():
    with pytest.raises(UserError, match="not of kind 'plateau'"):
        plateau().load_state_dict({})
    with pytest.raises(UserError, match="not of kind 'constant'"):
        make_schedule(ScheduleConfig(kind="constant")).load_state_dict(plateau().state_dict())


# Tables

BY_HAND = [
    # table, first epoch, end: rates of the weights and of conv1 (from 0.01), colour noise
    ("source-2010", 0, 23, 1e-2, 1e-2, True),
    ("source-2010", 23, 51, 1e-3, 1e-3, True),
    ("source-2010", 51, 68, 1e-4, 1e-4, True),
    ("source-2010", 68, 72, 1e-4, 1e-5, False),
    ("source-2010", 72, 78, 1e-4, 0.0, False),
    ("source-2010", 78, 93, 1e-5, 0.0, False),
    ("source-2012", 0, 25, 1e-2, 1e-2, True),
    ("source-2012", 25, 51, 1e-3, 1e-3, True),
    ("source-2012", 51, 67, 1e-4, 1e-4, True),
    ("source-2012", 67, 72, 1e-4, 1e-5, False),
    ("source-2012", 72, 79, 1e-4, 0.0, False),
    ("source-2012", 79, 91, 1e-5, 0.0, False),
    ("source-half", 0, 20, 1e-2, 1e-2, True),
    ("source-half", 20, 48, 1e-3, 1e-3, True),
    ("source-half", 48, 66, 1e-4, 1e-4, True),
    ("source-half", 66, 72, 1e-4, 1e-5, False),
    ("source-half", 72, 78, 1e-4, 0.0, False),
    ("source-half", 78, 96, 1e-5, 0.0, False),
    ("source-no-overlap", 0, 23, 1e-2, 1e-2, True),
    ("source-no-overlap", 23, 51, 1e-3, 1e-3, True),
    ("source-no-overlap", 51, 79, 1e-4, 1e-4, True),
    ("source-no-overlap", 79, 90, 1e-5, 0.0, True),
    ("source-no-lrn", 0, 22, 1e-2, 1e-2, True),
    ("source-no-lrn", 22, 44, 1e-3, 1e-3, True),
    ("source-no-lrn", 44, 69, 1e-4, 1e-4, True),
    ("source-no-lrn", 69, 73, 1e-4, 1e-5, False),
    ("source-no-lrn", 73, 86, 1e-4, 0.0, False),
    ("source-no-lrn", 86, 97, 1e-5, 0.0, False),
    # A tenth of these: that training began with 0.001.
    ("source-finetune", 0, 5, 1e-2, 1e-3, True),
    ("source-finetune", 5, 7, 1e-2, 1e-4, True),
    ("source-finetune", 7, 22, 1e-2, 0.0, True),
    ("source-finetune", 22, 38, 1e-3, 0.0, True),
    ("source-finetune", 38, 42, 1e-3, 0.0, False),
    ("source-finetune", 42, 54, 1e-4, 0.0, False),
    ("cifar10-80sec", 0, 16, 1e-2, 1e-2, True),
    ("cifar10-80sec", 16, 18, 1e-3, 1e-3, True),
    ("cifar10-80sec", 18, 20, 1e-4, 1e-4, True),
    ("cifar10-18pct", 0, 120, 1e-2, 1e-2, True),
    ("cifar10-18pct", 120, 130, 1e-3, 1e-3, True),
    ("cifar10-18pct", 130, 140, 1e-4, 1e-4, True),
    ("cifar10-11pct", 0, 500, 1e-2, 1e-2, True),
    ("cifar10-11pct", 500, 510, 1e-3, 1e-3, True),
    ("cifar10-11pct", 510, 520, 1e-4, 1e-4, True),
]


@pytest.mark.parametrize(("name", "first", "end", "weights", "conv1", "noise"), BY_HAND)
def test_the_tables_are_the_sources(name, first, end, weights, conv1, noise):
    for epoch in (first, first + 0.001, end - 0.001):
        rates = table(name).rates(epoch)
        assert 0.01 * rates.share("conv2", "weight") == pytest.approx(weights, rel=1e-12), epoch
        assert 0.01 * rates.share("conv1", "weight") == pytest.approx(conv1, rel=1e-12), epoch
        assert rates.colour_noise == noise, epoch


def test_every_table_is_tested_to_its_end():
    ends = {name: end for name, _, end, *_ in BY_HAND}
    assert ends == {name: TABLES[name].epochs for name in TABLES}


def test_the_biases_keep_their_rate_unless_told_when_to_drop():
    for epoch in (0, 24, 50, 90):
        assert table("source-2012").rates(epoch).share("fc6", "bias") == 1.0
    for epoch, share in ((0, 1.0), (21.9, 1.0), (22, 0.1), (90, 0.1)):
        rates = table("source-2012", bias_drop_epoch=22).rates(epoch)
        assert rates.share("fc6", "bias") == share
    assert table("cifar10-18pct").rates(125).share("fc10", "bias") == 0.1
    assert table("cifar10-18pct", bias_drop_epoch=22).rates(135).share("fc10", "bias") == 0.01


def test_the_biases_of_a_frozen_layer_are_frozen_too():
    low, frozen = table("source-2012").rates(70), table("source-2012").rates(72)
    assert (low.share("conv1", "bias"), frozen.share("conv1", "bias")) == (1.0, 0.0)


def test_the_reason_names_the_latest_changes():
    assert table("source-2012").rates(3).reason == "source-2012, epoch 0 of 91: start"
    reason = "source-2012, epoch 67 of 91: conv1 x 0.001, colour_noise x 0"
    assert table("source-2012").rates(68).reason == reason


@given(name=st.sampled_from(sorted(TABLES)), epochs=st.floats(0.5, 300), progress=progresses)
def test_a_table_stretches_to_any_number_of_epochs(name, epochs, progress):
    epoch = progress * TABLES[name].epochs
    assume(all(abs(epoch - change.epoch) > 1e-6 for change in TABLES[name].changes))
    stretched = table(name, epochs=epochs, bias_drop_epoch=22.5).rates(progress * epochs)
    assume(abs(epoch - 22.5) > 1e-6)
    assert stretched == table(name, bias_drop_epoch=22.5).rates(epoch)


# Formulas

PLATEAUS = [
    # base rate, tgtFactor, numSteps and the rates that the source lists
    (0.01, 1000, 4, [1e-2, 1e-3, 1e-4, 1e-5]),
    (0.01, 500, 4, [1e-2, 1.26e-3, 1.587e-4, 2e-5]),
    (0.01, 250, 4, [1e-2, 1.587e-3, 2.52e-4, 4e-5]),
    (0.01, 125, 4, [1e-2, 2e-3, 4e-4, 8e-5]),
    (0.01, 1000, 3, [1e-2, 3.16e-4, 1e-5]),
    (0.02, 10, 2, [2e-2, 2e-3]),
    (0.01, 1000, 1, [1e-5]),
]


@pytest.mark.parametrize(("base", "factor", "steps", "rates"), PLATEAUS)
def test_dexp_has_the_sources_plateaus(base, factor, steps, rates):
    for i, rate in enumerate(rates):
        for progress in ((i + 1e-9) / steps, (i + 0.5) / steps, (i + 1) / steps):
            assert base * dexp(progress, factor, steps) == pytest.approx(rate, rel=1e-3), progress
    assert base * dexp(0.0, factor, steps) == pytest.approx(rates[0])


def test_a_plateau_of_dexp_ends_with_the_last_moment_that_belongs_to_it():
    assert dexp(0.25, 1000, 4) == 1.0
    assert dexp(math.nextafter(0.25, 1), 1000, 4) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("progress", "rate"),
    [
        (0.0, 1e-2),
        (0.20, 1e-2),
        (0.25, 1e-2),
        (0.30, 1e-3),
        (0.375, 1e-3),
        (0.40, math.sqrt(1e-3 * 1e-2)),
        (0.50, math.sqrt(1e-3 * 1e-2)),
        (0.55, 1e-4),
        (0.70, math.sqrt(1e-4 * 1e-3)),
        (0.80, 1e-5),
        (0.89, math.sqrt(1e-5 * 1e-4)),
        (0.90, 1e-5),
        (1.0, 1e-5),
    ],
)
def test_jdexp_jumps_halfway_back_in_the_second_half_of_a_plateau(progress, rate):
    assert 0.01 * jdexp(progress, 1000, 4) == pytest.approx(rate, rel=1e-12)


def test_jdexp_does_not_jump_before_a_fifth():
    assert jdexp(0.19, 1000, 10) == dexp(0.19, 1000, 10)
    assert jdexp(0.29, 1000, 10) > dexp(0.29, 1000, 10)


@given(progress=progresses, base=st.floats(1e-4, 0.9), factor=factors)
def test_exp_and_linear_are_the_formulas_of_the_source(progress, base, factor):
    q = math.log(base / factor) / math.log(base) - 1
    source_exp = base ** (1 + progress * q)
    assert base * exp(progress, factor) == pytest.approx(source_exp, rel=1e-9)
    source_linear = base * (1 - progress) + (base / factor) * progress
    assert base * linear(progress, factor) == pytest.approx(source_linear, rel=1e-9)


@given(a=progresses, b=progresses, factor=factors, steps=step_counts)
def test_linear_exp_and_dexp_never_rise(a, b, factor, steps):
    a, b = sorted((a, b))
    slack = 1 + 1e-12
    assert linear(b, factor) <= linear(a, factor) * slack
    assert exp(b, factor) <= exp(a, factor) * slack
    assert dexp(b, factor, steps) <= dexp(a, factor, steps) * slack


@given(factor=factors, steps=step_counts)
def test_formulas_start_at_the_base_rate_and_end_at_its_target(factor, steps):
    start = 1.0 if steps > 1 else 1 / factor
    for formula in (dexp, jdexp):
        assert formula(0.0, factor, steps) == start
        assert formula(1.0, factor, steps) == 1 / factor
    for smooth in (linear, exp):
        assert smooth(0.0, factor) == 1.0
        assert smooth(1.0, factor) == pytest.approx(1 / factor, rel=1e-9)


@given(progress=progresses, factor=factors, steps=step_counts)
def test_jdexp_stays_between_its_level_and_the_one_before(progress, factor, steps):
    low, high = dexp(progress, factor, steps), dexp(progress - 1 / steps, factor, steps)
    assert low * (1 - 1e-12) <= jdexp(progress, factor, steps) <= high * (1 + 1e-12)


@pytest.mark.parametrize("kind", ["linear", "exp", "dexp", "jdexp"])
def test_a_formula_runs_over_the_whole_training_and_steps_the_biases_once(kind):
    formula = {"linear": linear, "exp": exp}.get(kind)
    schedule = make_schedule(ScheduleConfig(kind=kind, epochs=80, factor=250, steps=4))
    for epoch in (0.0, 7.3, 41.0, 66.6, 80.0, 81.5):
        progress = min(epoch / 80, 1.0)
        rates = schedule.rates(epoch)
        stepped = {"dexp": dexp, "jdexp": jdexp}
        expected = formula(progress, 250) if formula else stepped[kind](progress, 250, 4)
        assert rates.weights == expected
        assert rates.biases == (1.0 if epoch <= 40 else 0.1)
        assert rates.colour_noise
        assert rates.reason.startswith(f"{kind}[250")


# All kinds, and the optimizer


def test_a_constant_schedule_changes_nothing():
    schedule = make_schedule(ScheduleConfig(kind="constant"))
    assert not any(schedule.observe(0.5) for _ in range(50))
    assert schedule.rates(89.0) == Rates()
    assert schedule.state_dict() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_is_made_from_its_config_as_json(kind):
    config = ScheduleConfig(kind=kind)
    assert all(isinstance(value, str | float | int) for value in asdict(config).values())
    schedule = make_schedule(ScheduleConfig(**asdict(config)))
    assert schedule.rates(0.0).weights == schedule.rates(0.0).biases == 1.0


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("kind", "plateu", "did you mean 'plateau'"),
        ("table", "source-2011", "did you mean 'source-201"),
        ("epochs", 0.0, "schedule.epochs is 0.0; it must be > 0"),
        ("epochs", math.nan, "schedule.epochs is nan"),
        ("divisor", 1.0, "schedule.divisor is 1.0; it must be > 1"),
        ("drops", -1, "schedule.drops"),
        ("patience", 0, "schedule.patience is 0; it must be >= 1"),
        ("min_improvement", -0.1, "schedule.min_improvement"),
        ("factor", 0.5, "schedule.factor"),
        ("steps", 0, "schedule.steps"),
        ("noise", -1.0, "schedule.noise"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, value, message):
    with pytest.raises(UserError, match=message):
        make_schedule(ScheduleConfig(**{setting: value}))


def two_layers() -> nn.Module:
    return nn.ModuleDict({"conv1": nn.Linear(2, 2), "fc8": nn.Linear(2, 2)})


def test_the_optimizer_gets_its_base_rates_times_the_shares():
    optimizer = PaperSGD(parameter_groups(two_layers(), lr=0.01, bias_lr=0.02))
    schedule = table("source-2012", bias_drop_epoch=30)
    set_rates(optimizer.param_groups, schedule.rates(68))
    rates = {(g["layer"], g["kind"]): g["lr"] for g in optimizer.param_groups}
    assert rates == pytest.approx(
        {
            ("conv1", "weight"): 1e-5,
            ("conv1", "bias"): 2e-3,
            ("fc8", "weight"): 1e-4,
            ("fc8", "bias"): 2e-3,
        }
    )
    set_rates(optimizer.param_groups, schedule.rates(72))
    assert [group["lr"] == 0 for group in optimizer.param_groups] == [True, True, False, False]
    set_rates(optimizer.param_groups, schedule.rates(0))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02, 0.01, 0.02]


def test_noise_only_raises_rates_and_differs_between_groups():
    groups = parameter_groups(two_layers(), lr=0.01, bias_lr=0.01)
    set_rates(groups, Rates(noise=1.0), torch.Generator().manual_seed(0))
    drawn = [group["lr"] for group in groups]
    assert min(drawn) > 0.01
    assert len(set(drawn)) == 4
    set_rates(groups, Rates(noise=1.0), torch.Generator().manual_seed(0))
    assert [group["lr"] for group in groups] == drawn


@settings(max_examples=5, deadline=None)
@given(noise=st.floats(0.1, 2.0), seed=st.integers(0, 1000))
def test_the_noise_factor_has_the_mean_of_a_folded_normal(noise, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.tensor([noise_factor(noise, generator) for _ in range(4000)])
    assert draws.min() >= 1.0
    excess = (draws.mean().item() - 1) / noise
    # Five standard errors: a folded normal has the standard deviation sqrt(1 - 2/pi) = 0.603.
    assert abs(excess - math.sqrt(2 / math.pi)) < 5 * 0.603 / math.sqrt(4000)


def test_no_noise_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert noise_factor(0.0, generator) == 1.0
    assert torch.equal(generator.get_state(), before)
