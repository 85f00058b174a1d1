#!/usr/bin/env python3
"""A step on NumPy arrays through the C interface, beside the same in NumPy:

    cargo build --release --package hardmix-c
    python3 capi/examples/step.py target/release/libhardmix_c.so
"""

import ctypes as c
import sys

import numpy as np

B, K, d, N, s, t, tau = 8, 512, 32, 64, 32, 16, 0.2  # t is s′

hardmix = c.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libhardmix_c.so")
hardmix.hardmix_last_error.restype = c.c_char_p
# Without argtypes, ctypes would cut pointers and sizes to 32 bits.
hardmix.hardmix_plan_create.argtypes = [c.c_size_t] * 3 + [c.c_float, c.c_void_p]
hardmix.hardmix_queue_create.argtypes = [c.c_void_p] * 2 + [c.c_size_t] * 2 + [c.c_int32, c.c_size_t, c.c_void_p]
hardmix.hardmix_step.argtypes = [c.c_void_p] * 5
hardmix.hardmix_queue_enqueue.argtypes = [c.c_void_p] * 3 + [c.c_size_t, c.c_int32]
hardmix.hardmix_plan_free.argtypes = hardmix.hardmix_queue_free.argtypes = [c.c_void_p]


def struct(**fields):  # one of hardmix.h's, field by field
    kind = type("Struct", (c.Structure,), {"_fields_": [(name, kind) for name, (kind, _) in fields.items()]})
    return kind(*(value for _, value in fields.values()))


def of(array):
    return c.c_void_p, None if array is None else array.ctypes.data


def check(status):
    if status:
        raise RuntimeError(hardmix.hardmix_last_error().decode())


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


rng = np.random.default_rng(0)
q, k, rows = (unit(rng.standard_normal((n, d))).astype(np.float32) for n in (B, B, K))
out = {name: np.zeros(shape, dtype) for name, shape, dtype in [
    ("loss", 1, "f4"), ("loss_rows", B, "f4"), ("grad_queries", (B, d), "f4"), ("grad_keys", 0, "f4"),
    ("hardest", (B, N), "u4"), ("mixed_logits", (B, s), "f4"), ("query_mixed_logits", (B, t), "f4"),
    ("first", (B, s), "u4"), ("second", (B, s), "u4"), ("alpha", (B, s), "f4"), ("pick", (B, t), "u4"),
    ("beta", (B, t), "f4")]}
plan, queue = c.c_void_p(), c.c_void_p()
check(hardmix.hardmix_plan_create(N, s, t, tau, c.byref(plan)))
check(hardmix.hardmix_queue_create(rows.ctypes.data, None, K, d, 0, 0, c.byref(queue)))
batch = struct(queries=of(q), keys=of(k), labels=of(None), rows=(c.c_size_t, B), dim=(c.c_size_t, d), row_offset=(c.c_uint32, 0))
draws = struct(seed=(c.c_uint64, 42), step=(c.c_uint64, 0), **{name: of(None) for name in ("first", "second", "alpha", "pick", "beta")})
output = struct(**{name: of(array if array.size else None) for name, array in out.items()}, metrics=of(None))
check(hardmix.hardmix_step(plan, c.byref(batch), queue, c.byref(draws), c.byref(output)))
check(hardmix.hardmix_queue_enqueue(queue, k.ctypes.data, None, B, 0))

# The same in NumPy, with the draws that were made: the hardest, the mixtures, the softmax.
q, k, rows, alpha, beta = (x.astype(np.float64) for x in (q, k, rows, out["alpha"], out["beta"]))
hardest = np.sort(np.argsort(-(q @ rows.T), axis=1)[:, :N], axis=1)
assert (hardest == out["hardest"]).all()
listed = rows[hardest]  # [B, N, d]
row = np.arange(B)[:, None]
h = unit(alpha[..., None] * listed[row, out["first"]] + (1 - alpha[..., None]) * listed[row, out["second"]])
h_query = unit(beta[..., None] * q[:, None] + (1 - beta[..., None]) * listed[row, out["pick"]])
every = np.concatenate([k[:, None], np.broadcast_to(rows, (B, K, d)), h, h_query], axis=1)
logits = np.einsum("bd,bcd->bc", q, every) / tau
p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
gradient = (np.einsum("bc,bcd->bd", p, every) - k) / tau / B
off = max(np.abs(out["loss_rows"] + np.log(p[:, 0])).max(), np.abs(out["grad_queries"] - gradient).max())
assert off < 10 / tau * 2**-24, off  # ten roundings of logits of at most 1/τ
print(f"loss {out['loss'][0]:.6f}, agrees with NumPy to {off:.1e}")
hardmix.hardmix_plan_free(plan)
hardmix.hardmix_queue_free(queue)
