#!/usr/bin/env python3
"""PyTorch's side: one step of MoCo and of MoCHi on the CPU, as its users write it.

    torch_step.py INPUT.safetensors [--setting N,s,s'] [--rounds R] [--threads T]

INPUT holds queries, keys and queue, f32, as `cargo bench -p hardmix --bench step -- --write INPUT` makes it.
Eager operations, forward and backward with respect to the queries, temperature 0.2; mixing as the
public ports do it: topk without a gradient, gather, mix, normalise, concatenate, cross entropy.
Prints a line of JSON with every time in milliseconds.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

TEMPERATURE = 0.2


def cross_entropy(logits):
    """Column 0 is the positive."""
    target = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits / TEMPERATURE, target)


def real_logits(queries, keys, queue):
    positive = (queries * keys).sum(dim=1, keepdim=True)
    return positive, product(queries, queue)


def moco(queries, keys, queue):
    return cross_entropy(torch.cat(real_logits(queries, keys, queue), dim=1))


def gather(queue, hardest, positions):
    """The features of each row's hardest at these positions, [B, s, d]."""
    return queue[hardest.gather(1, positions)].float()


def mochi(queries, keys, queue, hardest, mixed, query_mixed):
    positive, negative = real_logits(queries, keys, queue)
    rows = queries.shape[0]
    with torch.no_grad():
        nearest = negative.topk(hardest, dim=1).indices
        device = queries.device
        first, second = torch.randint(hardest, (2, rows, mixed), device=device)
        alpha = torch.rand(rows, mixed, 1, device=device)
        h = alpha * gather(queue, nearest, first) + (1 - alpha) * gather(queue, nearest, second)
        h = F.normalize(h, dim=2)
        pick = torch.randint(hardest, (rows, query_mixed), device=device)
        beta = 0.5 * torch.rand(rows, query_mixed, 1, device=device)
        h_query = beta * queries[:, None] + (1 - beta) * gather(queue, nearest, pick)
        h_query = F.normalize(h_query, dim=2)
    synthetic = [torch.bmm(x, queries[:, :, None]).squeeze(2) for x in (h, h_query)]
    return cross_entropy(torch.cat([positive, negative, *synthetic], dim=1))


def product(queries, queue):
    """In the queue's type; the rest is f32."""
    return (queries.to(queue.dtype) @ queue.t()).float()


def timed(function):
    started = time.perf_counter()
    result = function()
    return 1e3 * (time.perf_counter() - started), result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input")
    parser.add_argument("--setting", default="1024,1024,128", metavar="N,s,s'")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    setting = tuple(int(x) for x in arguments.setting.split(","))
    case = load_file(arguments.input)
    queries, keys, queue = case["queries"], case["keys"], case["queue"]
    queries.requires_grad_()

    def step(loss, *settings):
        queries.grad = None
        value = loss(queries, keys, queue, *settings)
        value.backward()
        return value.item()

    times = {"product": [], "moco": [], "mochi": []}
    losses = {}
    # The first round only warms up.
    for round in range(arguments.rounds + 1):
        with torch.no_grad():
            results = {"product": timed(lambda: product(queries, queue))}
        results["moco"] = timed(lambda: step(moco))
        results["mochi"] = timed(lambda: step(mochi, *setting))
        for name, (milliseconds, result) in results.items():
            if round > 0:
                times[name].append(milliseconds)
            if name != "product":
                losses[name] = result
    print(json.dumps({"torch": torch.__version__, "times": times, "losses": losses}))


if __name__ == "__main__":
    main()
