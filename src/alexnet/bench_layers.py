"""Where a training step goes: each layer alone, forward and both gradients, beside its floor.

The floor of a layer is the larger of its operations at the machine's fastest measured product and
its bytes at the fastest measured copy; of a chain of ReLU, norm and pool it is the bytes alone.

Not here: the whole step beside others (`bench_step.py`).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from alexnet import fused, memory, products
from alexnet.bench_step import peak_flops
from alexnet.model import AlexNet, build
from alexnet.networks import Conv, Layer, Network, find_network
from alexnet.turns import Say, machine

COPIED = 64 << 20  # numbers that are copied to find the bandwidth


def bench_layers(
    network: str = "paper",
    *,
    batch_size: int = 128,
    rounds: int = 5,
    precisions: Sequence[str] = ("fp32", "bf16"),
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Medians of `rounds` on the CPU, in seconds: {"layers": {precision: {name: row}}, ...}."""
    memory.keep()
    model = build(find_network(network)).to(memory_format=torch.channels_last)
    bandwidth = copy_bandwidth()
    layers: dict[str, dict[str, Any]] = {}
    flops = {}
    for precision in precisions:
        flops[precision] = peak_flops("cpu", precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        rows = layers[precision] = {}
        for name, works, flop, moved in _works(model, batch_size, dtype):
            times = {key: _median(work, rounds) for key, work in works.items()}
            floor = sum(max(one / flops[precision], moved / bandwidth) for one in flop.values())
            rows[name] = {
                "input_gradient": 0.0,
                "weight_gradient": 0.0,
                **times,
                "seconds": sum(times.values()),
                "floor": floor,
            }
            say(f"{precision} {name}: {1e3 * rows[name]['seconds']:,.1f} ms")
        total = {key: sum(row[key] for row in rows.values()) for key in rows["fc8"]}
        rows["sum"] = total
    return {
        "network": network,
        "batch_size": batch_size,
        "rounds": rounds,
        "measured_flops": flops,
        "bytes_per_second": bandwidth,
        "layers": layers,
        "machine": machine(),
    }


def copy_bandwidth() -> float:
    """Bytes read and written per second by the fastest of some copies."""
    source, target = torch.ones(COPIED), torch.zeros(COPIED)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    return 2 * source.nbytes / min(seconds)


Works = dict[str, Callable[[], Any]]


def _works(
    model: AlexNet, batch_size: int, dtype: torch.dtype
) -> list[tuple[str, Works, dict[str, float], int]]:
    """(name, what to time, its operations, the bytes that each moves) in the order of a step."""
    network: Network = model.network
    px = network.picture_sizes()[-1]
    x = torch.randn(batch_size, 3, px, px).to(dtype).contiguous(memory_format=torch.channels_last)
    found = []
    for layer in network.layers:
        y, works, flop, moved = _product(model, layer, x, dtype)
        found.append((layer.name, works, flop, moved))
        for part in fused.split(layer.then):
            if isinstance(part, fused.Chain):
                z, chain_works, moved = _chain(part, y, network.columns)
                flops = dict.fromkeys(chain_works, 0.0)
                found.append((f"{layer.name}'s norm, pool", chain_works, flops, moved))
                y = z
        x = y.detach()
    return found


def _product(
    model: AlexNet, layer: Layer, x: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Works, dict[str, float], int]:
    shape = model.shapes[layer.name]
    weight = model.get_parameter(f"{layer.name}.weight").detach().to(dtype)
    bias = model.get_parameter(f"{layer.name}.bias").detach().to(dtype)
    is_conv = isinstance(layer, Conv)
    x = x if is_conv else x.flatten(1)

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        if not isinstance(layer, Conv):
            return products.linear(x, weight, bias)
        groups = x.shape[1] // weight.shape[1]
        return products.convolve(
            x, weight, bias, stride=layer.stride, padding=layer.padding, groups=groups
        )

    first = layer is model.network.layers[0]
    wanted = {"weight_gradient": (x, weight.clone().requires_grad_())}
    if not first:
        wanted["input_gradient"] = (x.clone().requires_grad_(), weight)
    y = forward(x, weight)
    works: Works = {"forward": lambda: forward(x, weight)}
    for key, tensors in wanted.items():
        out = forward(*tensors)
        leaf = next(tensor for tensor in tensors if tensor.requires_grad)
        works[key] = _backward_of(out, leaf, torch.randn_like(out))
    flop = dict.fromkeys(works, 2.0 * shape.macs * len(x))
    return y, works, flop, x.nbytes + y.nbytes + weight.nbytes


def _backward_of(out: Tensor, leaf: Tensor, dy: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(out, leaf, dy, retain_graph=True)


def _chain(chain: fused.Chain, x: Tensor, columns: int) -> tuple[Tensor, Works, int]:
    leaf = x.detach().clone().requires_grad_()
    out = fused.apply(chain, leaf, columns)
    works: Works = {
        "forward": lambda: fused.apply(chain, leaf, columns),
        "input_gradient": _backward_of(out, leaf, torch.randn_like(out)),
    }
    return out.detach(), works, x.nbytes + out.nbytes


def _median(work: Callable[[], Any], rounds: int) -> float:
    work()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
