"""Claim 17 at full size: three seeds of some of its recipes, 200 steps each, into OUT/results.jsonl.

    alexnet prepare imagenette/ packed/ --name imagenette
    python records/2026-11-28_claims/full.py packed/ OUT caffe-inverted paper-start-norm-first-plain

Stopped or killed, the same command goes on. `alexnet reproduce stall --full` runs all 24 recipes.
"""

import sys
from dataclasses import replace
from pathlib import Path

from alexnet.campaign import Campaign
from alexnet.claims import find_claim
from alexnet.scales import Scale
from alexnet.stall_claim import stalls
from alexnet.trials import Place

packed, out, *arms = sys.argv[1:]


def some(scale, seeds, lines):
    found = [trial for trial in stalls(scale, seeds, lines) if trial.arm in arms]
    if unknown := set(arms) - {trial.arm for trial in found}:
        sys.exit(f"no recipes {', '.join(sorted(unknown))}")
    return found


if __name__ == "__main__":
    scale = Scale("imagenette", full=True, precision="bf16")
    place = Place(Path(out), {"imagenette": packed})
    claim = replace(find_claim("stall"), plan=some)
    Campaign([claim], scale, place, seeds=3, devices=("cpu",), say=print).run()
