#!/bin/bash
# Two network namespaces in the place of two machines, a link between them of a stated rate, and
# torchrun in both:   sudo machines.sh 1gbit 'alexnet.scaling_ranks {"task": ...}'
# (or: machines.sh 1gbit -- alexnet train shapes --max-steps 20 --run RUN)
set -euo pipefail
rate=$1; shift
for n in 1 2; do ip netns add machine$n; ip -n machine$n link set lo up; done
trap 'for n in 1 2; do ip netns del machine$n; done' EXIT
ip link add to2 netns machine1 type veth peer name to1 netns machine2
ip -n machine1 addr add 10.9.0.1/24 dev to2; ip -n machine1 link set to2 up
ip -n machine2 addr add 10.9.0.2/24 dev to1; ip -n machine2 link set to1 up
if [ "$rate" != none ]; then
    ip netns exec machine1 tc qdisc add dev to2 root tbf rate $rate burst 256kb latency 200ms
    ip netns exec machine2 tc qdisc add dev to1 root tbf rate $rate burst 256kb latency 200ms
fi
start() { # number, interface
    ip netns exec machine$1 env GLOO_SOCKET_IFNAME=$2 OMP_NUM_THREADS=1 \
        ${PYTHON:-python} -m torch.distributed.run --nnodes 2 --node-rank $(($1 - 1)) \
        --nproc-per-node 1 --master-addr 10.9.0.1 --master-port 29500 -m "${@:3}"
}
start 2 to1 "$@" &
start 1 to2 "$@"
wait
