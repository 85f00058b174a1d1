#!/usr/bin/env python3
"""PyTorch's side on a GPU: the step of torch_step.py, and the operators that our benches time alone.

    torch_gpu.py [--shape K,B,d]... [--dtype f32|tf32|bf16]... [--setting N,s,s'] [--rounds R]
                 [--compile] [--device cpu]

MoCo and MoCHi, forward and backward with respect to the queries, eager and with --compile also through
torch.compile with CUDA graphs (mode "reduce-overhead"); the two matrix products and torch.topk alone,
which is the least that a step of separate kernels can take; topk of given logits; gather, mix and
normalise. All are taken in turn, on random unit rows, and timed by the GPU's events. Prints a line of
JSON a shape and type, times in microseconds. --device cpu is for trying the script, its times are the
CPU's.
"""

import argparse
import functools
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch_step import moco, mochi, product

SHAPES = ["65536,256,128", "65536,32,128", "16384,256,128"]
DTYPES = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def time_us(work, device):
    if device == "cpu":
        started = time.perf_counter()
        work()
        return 1e6 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3


def measure(capacity, rows, dim, dtype, setting, arguments):
    device = arguments.device
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    hardest, mixed, query_mixed = setting

    def unit(n):
        return F.normalize(torch.randn(n, dim, device=device), dim=1)

    queue, queries, keys = unit(capacity).to(DTYPES[dtype]), unit(rows), unit(rows)
    queries.requires_grad_()
    with torch.no_grad():
        logits = product(queries, queue)
        nearest = logits.topk(hardest, dim=1).indices

    def step(loss, *settings):
        queries.grad = None
        loss(queries, keys, queue, *settings).backward()

    @torch.no_grad()
    def floor(ranks):
        logits = queries.to(queue.dtype) @ queue.t()
        if ranks:
            logits.float().topk(hardest, dim=1)
        logits @ queue

    @torch.no_grad()
    def mix():
        first, second = torch.randint(hardest, (2, rows, mixed), device=device)
        pick = torch.randint(hardest, (rows, query_mixed), device=device)
        alpha = torch.rand(rows, mixed, 1, device=device)
        beta = torch.rand(rows, query_mixed, 1, device=device) / 2
        of = lambda positions: queue[nearest.gather(1, positions)].float()
        F.normalize(alpha * of(first) + (1 - alpha) * of(second), dim=2)
        F.normalize(beta * queries[:, None] + (1 - beta) * of(pick), dim=2)

    contestants = {
        "moco": functools.partial(step, moco),
        "mochi": functools.partial(step, mochi, *setting),
        "products": functools.partial(floor, False),
        "products and topk": functools.partial(floor, True),
        "topk": lambda: logits.topk(hardest, dim=1),
        "mix": mix,
    }
    if arguments.compile:
        compiled = functools.partial(torch.compile, mode="reduce-overhead", dynamic=False)
        contestants["moco, compiled"] = functools.partial(step, compiled(moco))
        contestants["mochi, compiled"] = functools.partial(step, compiled(mochi), *setting)
    times = {name: [] for name in contestants}
    # The first rounds warm up; a compiled step is captured in its third.
    for at in range(-3, arguments.rounds):
        for name, work in contestants.items():
            taken = time_us(work, device)
            if at >= 0:
                times[name].append(round(taken, 2))
    torch.compiler.reset()
    return {"capacity": capacity, "rows": rows, "dim": dim, "dtype": dtype, "times": times}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="append", metavar="K,B,d")
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--setting", default="1024,1024,128", metavar="N,s,s'")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU, nothing is measured")
    name = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name()
    setting = tuple(int(x) for x in arguments.setting.split(","))
    for shape in arguments.shape or SHAPES:
        for dtype in arguments.dtype or DTYPES:
            sizes = (int(x) for x in shape.split(","))
            line = measure(*sizes, dtype, setting, arguments)
            print(json.dumps({"device": name, "torch": torch.__version__, **line}), flush=True)


if __name__ == "__main__":
    main()
