#!/bin/sh
# The claims at full size on one GPU, as many as fit into each call: about nine minutes.
#
#     DATA=imagenette/ OUT=claims/ sh benchmarks/gpu_claims.sh
#
# DATA: a folder of pictures, or a packed data set: packed once as JPEG, to be carried to the GPU. The
# same call goes on where the last ended; all trials of a call run in one process. What tells most
# for its time comes first. It has not run yet: no GPU was at hand.
set -eu
DATA=${DATA:?a folder of pictures, or packed ones}
OUT=${OUT:-claims}
MINUTES=${MINUTES:-9}

PACKED=$DATA
if [ ! -f "$DATA/dataset.json" ]; then
    PACKED=$OUT/packed
    [ -f "$PACKED/dataset.json" ] || alexnet prepare "$DATA" "$PACKED" --store jpeg --name imagenette
fi
ends=$(($(date +%s) + 60 * MINUTES))

run() {
    left=$((ends - $(date +%s)))
    [ $left -gt 0 ] || return 0
    code=0
    alexnet reproduce "$@" --scale imagenette --data "$PACKED" --full --precision bf16 \
        --devices cuda --out "$OUT" --budget ${left}s || code=$?
    [ $code -eq 0 ] || [ $code -eq 2 ] || exit $code  # 2: not one pair fits; the rest may
}

run stall --seeds 20
run columns views kernels neighbours norm --seeds 5
run overfitting colour decay overlap depth schedule --seeds 5
run averaging baselines
alexnet reproduce --report --out "$OUT" --page "$OUT/reproduction.md"
