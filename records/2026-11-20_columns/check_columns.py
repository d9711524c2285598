"""Two columns on two ranks against one device, at full size: logits, gradients, weights, bytes.

    torchrun --standalone --nproc-per-node 2 check_columns.py NETWORK fp64|fp32 [IMAGES [STEPS [RATE]]]

Rank 0 first trains the one-device network alone, on random pictures, with dropout; then both train
its columns from the same weights. In fp32 rank 0 trains once more alone, from weights that are off
by one unit in the last place: how far that carries is what rounding does here by itself. Prints one
line of JSON.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F

from alexnet.columns import cut, cut_optimizer
from alexnet.describe import describe_network
from alexnet.model import build
from alexnet.networks import find_network
from alexnet.optim import PaperSGD, parameter_groups
from alexnet.parallel import joined, parse

CLASSES = 1000


def fresh(name, dtype):
    model = build(find_network(name), CLASSES, torch.Generator().manual_seed(0)).to(dtype)
    model.to(memory_format=torch.channels_last)
    model.dropout_generator = torch.Generator().manual_seed(1)
    return model.train()


def batches(px, images, steps, dtype):
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        pictures = 60 * torch.randn(images, 3, px, px, generator=generator, dtype=torch.float64)
        yield pictures.to(dtype), torch.randint(CLASSES, (images,), generator=generator)


def learn(model, optimizer, feed, sent=None):
    losses, first = [], {}
    for step, (images, labels) in enumerate(feed):
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        if step == 0:
            first["logits"] = logits.detach().clone()
            first["gradients"] = {n: w.grad.clone() for n, w in model.named_parameters()}
            first["sent"] = dict(sent or {})
        optimizer.step()
        losses.append(loss.item())
    return losses, first


def apart(losses, expected):
    return [abs(a - b) for a, b in zip(losses, expected, strict=True)]


def furthest(found, expected):
    """Largest difference, and the largest relative to the greatest number of its tensor."""
    pairs = [(found[name], expected[name]) for name in expected]
    absolute = max(float((a - b).abs().max()) for a, b in pairs)
    relative = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return {"absolute": absolute, "relative": relative}


def nudged(model):
    """The weights, each off by one unit in the last place, up or down."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            ways = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
            ways = torch.where(ways > 0, torch.inf, -torch.inf)
            weights.copy_(torch.nextafter(weights, ways))
    return model


def held(model, optimizer):
    weights = sum(w.numel() * w.element_size() for w in model.parameters())
    states = optimizer.state.values()
    velocity = sum(s["velocity"].numel() * s["velocity"].element_size() for s in states)
    return {"parameters": weights, "velocity": velocity}


def main():
    name, precision = sys.argv[1:3]
    given = [*sys.argv[3:], *("4", "20", "0.01")[len(sys.argv) - 3 :]]
    images, steps, rate = int(given[0]), int(given[1]), float(given[2])
    dtype = {"fp64": torch.float64, "fp32": torch.float32}[precision]
    px = find_network(name).input_px
    torch.set_num_threads(1)
    with joined(parse("columns=2", 2), seconds=3600) as ranks:
        if ranks.speaks:
            one = fresh(name, dtype)
            optimizer = PaperSGD(parameter_groups(one, rate, 2 * rate))
            began = time.perf_counter()
            expected_losses, expected = learn(one, optimizer, batches(px, images, steps, dtype))
            seconds = time.perf_counter() - began
            weights, one_holds = one.state_dict(), held(one, optimizer)
            velocities = {
                f"{group['layer']}.{group['kind']}": optimizer.state[group["params"][0]]["velocity"]
                for group in optimizer.param_groups
            }
            control = {}
            if precision == "fp32":
                other = nudged(fresh(name, dtype))
                nudged_optimizer = PaperSGD(parameter_groups(other, rate, 2 * rate))
                feed = batches(px, images, steps, dtype)
                nudged_losses, _ = learn(other, nudged_optimizer, feed)
                control = {
                    "losses": apart(nudged_losses, expected_losses),
                    "weights": furthest(other.state_dict(), weights),
                }
                del other, nudged_optimizer
        ranks.everyone.wait("the one-device network")
        part = cut(fresh(name, dtype), ranks.columns)
        optimizer = PaperSGD(parameter_groups(part, rate, 2 * rate))
        cut_optimizer(optimizer, part)
        part.take_share(images)
        ranks.journal.sent.clear()
        began = time.perf_counter()
        feed = batches(px, images, steps, dtype)
        losses, first = learn(part, optimizer, feed, ranks.journal.sent)
        two_seconds = time.perf_counter() - began
        gradients = {n: part.merged(n, grad) for n, grad in first["gradients"].items()}
        merged, state = part.state_dict(), optimizer.state_dict()
        every = ranks.everyone.objects(
            {"sent": first["sent"], "holds": held(part, optimizer)}, "what each has"
        )
        if not ranks.speaks:
            return
        found_velocities = {
            f"{group['layer']}.{group['kind']}": state["state"][group["params"][0]]["velocity"]
            for group in state["param_groups"]
        }
        float_bytes = torch.finfo(dtype).bits // 8
        counted = describe_network(name, CLASSES)
        described = {"logits": counted.logit_bytes}
        for layer in counted.layers:
            if layer.exchange_bytes:
                described[f"{layer.name} forward"] = layer.exchange_bytes
                described[f"{layer.name} backward"] = layer.exchange_bytes
        # For each image, in float32, to compare with `alexnet describe`.
        measured = {
            key: sum(rank["sent"][key] for rank in every) * 4 / float_bytes / images
            for key in every[0]["sent"]
        }
        total = sum(one_holds.values())
        print(
            json.dumps(
                {
                    "network": name,
                    "precision": precision,
                    "images": images,
                    "steps": steps,
                    "rate": rate,
                    "logits": furthest({"x": first["logits"]}, {"x": expected["logits"]}),
                    "gradients": furthest(gradients, expected["gradients"]),
                    "weights": furthest(merged, weights),
                    "velocities": furthest(found_velocities, velocities),
                    "losses": max(apart(losses, expected_losses)),
                    "losses_by_step": apart(losses, expected_losses),
                    "off_by_one_ulp": control,
                    "bytes_per_image": measured,
                    "bytes_as_described": measured == described,
                    "one_device_holds": one_holds,
                    "rank_holds": [rank["holds"] for rank in every],
                    "largest_share": max(sum(rank["holds"].values()) for rank in every) / total,
                    "seconds": {"one": seconds, "two": two_seconds},
                }
            ),
            flush=True,
        )


main()
