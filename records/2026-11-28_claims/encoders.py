"""Which codes of descriptors the baselines have, and why: error on held-out training pictures.

    python records/2026-11-28_claims/encoders.py PACKED

2,000 training pictures, 946 held-out ones, seed 0; 512 atoms learned with codes of 5, or 1,024 with
codes of 2. What drafts of it printed, % missed at C = 1, 10, 100 (each fit from nothing, to ten
times the tolerance that the baselines have now):

                                   SIFT               colour
    5 atoms, sign dropped          51.2 47.8 48.6     49.4 45.2 44.7
    5 atoms, signs apart           50.5 47.1 47.6     47.4 41.4 41.1
    10 atoms, signs apart          48.8 46.4 46.5     46.9 41.2 41.2
    2 atoms of 1,024               48.8 47.0 47.0     49.6 45.7 45.8
    5 atoms of 1,024               48.8 45.2 45.8     47.8 42.5 43.1
    soft threshold 0.25            53.8 48.7 49.2     60.7 52.2 50.7
    FISTA, 20 steps, penalty 0.15  48.0 44.6 44.5     47.1 42.1 43.0

946 pictures: a standard error of 1.6 points. Signs apart helps; 1,024 atoms and l1-penalised codes
(FISTA, twice as long) are better on SIFT and no better on colour.
"""

import sys

import numpy as np
import torch
from torch.nn.functional import softshrink

from alexnet import baselines
from alexnet.opening import open_dataset
from alexnet.randomness import permutation

STRENGTHS = (1.0, 10.0, 100.0)
LEARN = 2000


def fista(x, dictionary, penalty=0.15, steps=20):
    """l1-penalised codes: Beck, Teboulle 2009."""
    reach = float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
    codes = torch.empty(len(x), len(dictionary))
    for rows, out in zip(torch.split(x, 1024), torch.split(codes, 1024), strict=True):
        found = ahead = torch.zeros(len(rows), len(dictionary))
        momentum = 1.0
        for _ in range(steps):
            missing = rows - ahead @ dictionary
            new = softshrink(ahead + missing @ dictionary.T / reach, penalty / reach)
            after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = new + (momentum - 1) / after * (new - found)
            found, momentum = new, after
        out.copy_(found)
    return codes


def main() -> None:
    torch.set_num_threads(1)
    train = open_dataset(sys.argv[1], image_px=64).splits["train"]
    order = permutation(0, "baseline: held out", 0, len(train))
    cut = len(train) // 10
    learn, held_out = np.sort(order[cut : cut + LEARN]), np.sort(order[:cut])
    pursuit, apart = baselines.sparse_codes, baselines._largest
    for kind, describe in (("sift", baselines.dense_sift), ("colour", baselines.dense_colours)):
        sample, places = baselines._sample(describe, train.images[learn], 0)
        five = baselines.SparseCodes(sample, places, {"nonzeros": 5}, 0)
        baselines.ATOMS = 1024
        larger = baselines.SparseCodes(sample, places, {"nonzeros": 2}, 0)
        baselines.ATOMS = 512
        for name, codebook, coder, pooled in (
            ("5 atoms, sign dropped", five, pursuit, lambda codes: (codes.abs().amax(1),)),
            ("5 atoms, signs apart", five, pursuit, apart),
            ("10 atoms", five, lambda x, d, n: pursuit(x, d, 10), apart),
            ("2 of 1,024", larger, pursuit, apart),
            ("5 of 1,024", larger, lambda x, d, n: pursuit(x, d, 5), apart),
            ("threshold", five, lambda x, d, n: softshrink(x @ d.T, 0.25), apart),
            ("fista", five, lambda x, d, n: fista(x, d), apart),
        ):
            baselines.sparse_codes, baselines._largest = coder, pooled
            seen, unseen = (
                baselines._encode([codebook], describe, train.images[rows], lambda text: None)[0]
                for rows in (learn, held_out)
            )
            baselines.sparse_codes, baselines._largest = pursuit, apart
            classifier = baselines._Classifier()
            errors = [
                classifier.fit(c, seen, train.labels[learn]).misses(unseen, train.labels[held_out])
                for c in STRENGTHS
            ]
            print(kind, name, *(f"{100 * error:.1f}" for error in errors), flush=True)


if __name__ == "__main__":
    main()
