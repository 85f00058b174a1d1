#!/usr/bin/env python3
"""PyTorch's side on a GPU: the operators that the benches `rank`, `mix` and `info_nce` time.

    torch_gpu.py [--rounds R]

torch.topk of logits; gather, mix and normalise; product and cross entropy, forward and backward. Each
is timed by the GPU's events, after a warm-up, on random unit rows; prints a line of JSON with the
device and every median in microseconds. Without a GPU it says so and stops.
"""

import argparse
import json
import sys

import torch
import torch.nn.functional as F

DIM, TEMPERATURE = 128, 0.2
SHAPES = [(65536, 256), (16384, 256), (65536, 32)]
HARDEST, MIXED, QUERY_MIXED = 1024, 1024, 128


def median_us(work, rounds):
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[rounds // 2]


def measure(capacity, rows, dtype, rounds):
    def unit(n):
        return F.normalize(torch.randn(n, DIM, device="cuda"), dim=1)

    queue, queries, keys = unit(capacity).to(dtype), unit(rows), unit(rows)
    logits = queries.to(dtype) @ queue.t()
    hardest = logits.topk(HARDEST, dim=1).indices

    def mix():
        first, second = (torch.randint(HARDEST, (rows, MIXED), device="cuda") for _ in range(2))
        pick = torch.randint(HARDEST, (rows, QUERY_MIXED), device="cuda")
        alpha = torch.rand(rows, MIXED, 1, device="cuda")
        beta = torch.rand(rows, QUERY_MIXED, 1, device="cuda") / 2
        of = lambda positions: queue[hardest.gather(1, positions)].float()
        mixed = F.normalize(alpha * of(first) + (1 - alpha) * of(second), dim=2)
        query_mixed = F.normalize(beta * queries[:, None] + (1 - beta) * of(pick), dim=2)
        return mixed, query_mixed

    def cross_entropy():
        leaf = queries.detach().requires_grad_()
        positive = (leaf * keys).sum(dim=1, keepdim=True)
        negatives = (leaf.to(dtype) @ queue.t()).float()
        target = torch.zeros(rows, dtype=torch.long, device="cuda")
        F.cross_entropy(torch.cat([positive, negatives], dim=1) / TEMPERATURE, target).backward()
        return leaf.grad

    return {
        "capacity": capacity,
        "rows": rows,
        "dtype": str(dtype),
        "topk_us": median_us(lambda: logits.float().topk(HARDEST, dim=1), rounds),
        "mix_us": median_us(mix, rounds),
        "cross_entropy_us": median_us(cross_entropy, rounds),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU, nothing is measured")
    results = [
        measure(capacity, rows, dtype, arguments.rounds)
        for capacity, rows in SHAPES
        for dtype in (torch.float32, torch.bfloat16)
    ]
    print(json.dumps({"device": torch.cuda.get_device_name(), "results": results}))


if __name__ == "__main__":
    main()
