"""Draw scales.png: what reaches conv1 at the first step against when the loss leaves ln(10)."""

import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

from alexnet.trials import epochs_to, train_curve

HERE = Path(__file__).parent
STEPS = 200
COLOURS = {"plain": "#0072B2", "inverted": "#D55E00"}


def first_gradients() -> dict[str, float]:
    """Norm of conv1's gradient in the first step, by arm."""
    with open(HERE / "scales.csv", newline="") as file:
        return {
            row["arm"]: float(row["gradient_norm"])
            for row in csv.DictReader(file)
            if (row["step"], row["layer"]) == ("0", "conv1")
        }


def steps_to_leave() -> dict[str, list[int]]:
    """Of each seed, by arm; STEPS where it had not left."""
    found = defaultdict(list)
    for line in map(json.loads, (HERE / "results.jsonl").read_text().splitlines()):
        if "-start" in line["arm"]:
            found[line["arm"]].append(line["results"]["left_chance"] or STEPS)
    return found


def print_figure_1() -> None:
    """Epochs to 25 % training error, or the lowest and the last error, of each run of claim 1."""
    lines = map(json.loads, (HERE / "results.jsonl").read_text().splitlines())
    for line in lines:
        if "-rate-" in line["arm"]:
            curve = [error for _, error in train_curve(line)]
            print(line["trial"], epochs_to(line, 25.0), f"{min(curve):.1f} {curve[-1]:.1f}")


def print_baselines() -> None:
    """Errors of claim 15's runs, and what was best of what each of them tried."""
    for line in map(json.loads, (HERE / "results.jsonl").read_text().splitlines()):
        if line["kind"] == "baseline" or line["asked"]["epochs"] == 40 and line["arm"] == "control":
            errors = line["results"]["errors"].items()
            missed = {key: f"{100 * n['top1_wrong'] / n['images']:.2f}" for key, n in errors}
            print(line["trial"], missed, line["results"].get("tuned", ""))


def main() -> None:
    print_figure_1()
    print_baselines()
    gradients, leaving = first_gradients(), steps_to_leave()
    figure, axes = plt.subplots(figsize=(7.4, 4.4), layout="constrained")
    for arm, gradient in sorted(gradients.items()):
        if "shapes" in arm:
            continue
        start, _, dropout = arm.rpartition("-")
        steps = leaving[arm]
        middle = statistics.median(steps)
        axes.plot([gradient] * 2, [min(steps), max(steps)], color=COLOURS[dropout], linewidth=1)
        axes.plot([gradient], [middle], "o" if middle < STEPS else "x", color=COLOURS[dropout])
        above = "norm-first" not in arm  # the same gradient with the norm after the ReLU
        axes.annotate(
            start.replace("-start", "") if above else "",
            (gradient, middle),
            xytext=(6, 6 if dropout == "plain" else -12),
            textcoords="offset points",
            fontsize=8,
            color=COLOURS[dropout],
        )
        print(f"{arm}: gradient {gradient:.2g}, median step {middle:g}, n = {len(steps)}")
    for dropout, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=f"{dropout} dropout")
    axes.set(xscale="log", xlabel="norm of conv1's gradient in the first step (seed 0)")
    axes.set(ylim=(0, STEPS + 10), ylabel="step at which the loss leaves ln(10)")
    axes.set_title("Imagenette at 64 px: lines from first to last seed; crosses: still there")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(HERE / "scales.png", dpi=150)


if __name__ == "__main__":
    main()
