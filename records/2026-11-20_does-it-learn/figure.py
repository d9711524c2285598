"""Draw losses.png and scales.png, and print the table of the README, from the CSV files here."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
CHANCE = math.log(10)
TITLE = "Imagenette, full size, three seeds each: plain dropout learns, inverted cripples"
SMOOTHING = 0.9  # exponential mean, corrected for its start
GROUPS = {  # run name without its seed -> (title, colour)
    "source": ("source, plain dropout", "#0072B2"),
    "paper": ("paper, plain dropout", "#009E73"),
    "source-inverted": ("source, inverted dropout", "#D55E00"),
    "paper-inverted": ("paper, inverted dropout", "#CC79A7"),
}
TABLE_STEPS = (50, 100, 150, 200, 250, 370)


def rows(name: str) -> list[dict[str, str]]:
    with open(HERE / name, newline="") as file:
        return list(csv.DictReader(file))


def smooth(values: list[float]) -> list[float]:
    mean, smoothed = 0.0, []
    for step, value in enumerate(values, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smoothed.append(mean / (1 - SMOOTHING**step))
    return smoothed


def curves() -> dict[str, list[float]]:
    losses = defaultdict(list)
    for row in rows("losses.csv"):
        losses[row["run"]].append(float(row["loss"] or "nan"))
    return {run: smooth(values) for run, values in losses.items()}


def group(run: str) -> str:
    return run.rpartition("-seed")[0]


def draw_losses(smoothed: dict[str, list[float]]) -> None:
    figure, axes = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
    axes.axhline(CHANCE, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
    axes.text(372, CHANCE + 0.015, "ln 10: guessing", ha="right", va="bottom", color="#555555")
    for run, values in smoothed.items():
        title, colour = GROUPS[group(run)]
        label = title if run.endswith("seed0") else None
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.6, label=label)
    axes.set(xlabel="minibatches of 128", ylabel="training loss, smoothed (nats)", ylim=(1.0, 3.1))
    axes.set_title(TITLE, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(HERE / "losses.png", dpi=160)


def draw_scales() -> None:
    measured = rows("scales.csv")
    layers = list(dict.fromkeys(row["layer"] for row in measured))
    quantities = (
        ("gradient_norm", "norm of the weights' gradient"),
        ("activation_std", "standard deviation of activations"),
        ("picture_spread", "spread between pictures (0: none)"),
    )
    steps = (0, 100)
    figure, panels = plt.subplots(
        len(steps), len(quantities), figsize=(11, 6.4), layout="constrained", sharex=True
    )
    for line, step in zip(panels, steps, strict=True):
        for axes, (key, title) in zip(line, quantities, strict=True):
            for name, (label, colour) in GROUPS.items():
                here = {
                    row["layer"]: float(row[key])
                    for row in measured
                    if row["run"] == f"{name}-seed0" and int(row["step"]) == step
                }
                if here:
                    heights = [here[layer] for layer in layers]
                    axes.plot(layers, heights, "o-", color=colour, label=label, markersize=4)
            axes.set_title(f"{title}, step {step}", loc="left", fontsize=10)
            axes.set_yscale("log" if key != "picture_spread" else "linear")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="x", rotation=45)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(HERE / "scales.png", dpi=160)


def print_table(smoothed: dict[str, list[float]]) -> None:
    print("| run | " + " | ".join(f"step {step}" for step in TABLE_STEPS) + " |")
    print("|---|" + "---:|" * len(TABLE_STEPS))
    for run, values in sorted(
        smoothed.items(), key=lambda item: list(GROUPS).index(group(item[0]))
    ):
        cells = [f"{values[step - 1]:.2f}" if step <= len(values) else "" for step in TABLE_STEPS]
        print(f"| `{run}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    all_curves = curves()
    draw_losses(all_curves)
    draw_scales()
    print_table(all_curves)
