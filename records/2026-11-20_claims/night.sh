#!/bin/sh
# The claims on two quiet cores, in the order of what they tell for their time: about 2 h 35 min.
# Each line keeps to its budget and leaves no half pair; stopped, it goes on where it was. IMAGENETTE
# and CIFAR10 are folders of pictures or packed data sets; unset, they are downloaded.
set -e
cd "$(dirname "$0")"
OUT=${OUT:-results}
imagenette="--scale imagenette ${IMAGENETTE:+--data $IMAGENETTE}"
cifar10="--scale cifar10 ${CIFAR10:+--data $CIFAR10}"
common="--precision bf16 --devices cpu,cpu --out $OUT"

alexnet reproduce columns views kernels neighbours norm averaging $imagenette --epochs 8 $common --budget 35m
alexnet reproduce baselines $imagenette --epochs 8 $common --seeds 3 --budget 25m
alexnet reproduce overfitting colour decay $imagenette --epochs 8 $common --budget 15m
alexnet reproduce stall $imagenette $common --seeds 20 --budget 25m
alexnet reproduce relu $cifar10 --epochs 20 $common --seeds 5 --budget 30m
alexnet reproduce depth overlap schedule transfer table2 $imagenette --epochs 8 $common --budget 15m
alexnet reproduce norm kernels $cifar10 --epochs 3 $common --budget 10m
alexnet reproduce --report --out "$OUT" --page ../../docs/reproduction.md
