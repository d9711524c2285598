#!/bin/sh
# The claims on two quiet cores, in the order of what they tell for their time: about 2 h 35 min.
# From the root of the repository: IMAGENETTE=... CIFAR10=... sh records/2026-11-20_claims/night.sh
# with folders of pictures or packed data sets; unset, they are downloaded. (PRETRAIN: CIFAR-10
# as a folder of pictures, for claim transfer.) Each line keeps to its
# budget and leaves no half pair; stopped, the same command goes on where it was.
OUT=${OUT:-$(dirname "$0")}
imagenette="--scale imagenette ${IMAGENETTE:+--data $IMAGENETTE}"
cifar10="--scale cifar10 ${CIFAR10:+--data $CIFAR10}"

run() {
    alexnet reproduce "$@" --precision bf16 --devices cpu,cpu --out "$OUT"
    code=$?
    [ $code -eq 0 ] || [ $code -eq 2 ] || exit $code  # 2: not one pair fits; the rest may
}

run columns views kernels neighbours norm averaging $imagenette --epochs 8 --budget 35m
run baselines $imagenette --epochs 8 --seeds 3 --budget 25m
run overfitting colour decay $imagenette --epochs 8 --budget 15m
run stall $imagenette --seeds 20 --budget 25m
run relu $cifar10 --epochs 20 --seeds 5 --budget 30m
run depth overlap schedule transfer table2 $imagenette ${PRETRAIN:+--pretrain $PRETRAIN} \
    --epochs 8 --budget 15m
run norm kernels $cifar10 --epochs 3 --budget 10m
alexnet reproduce --report --out "$OUT"
