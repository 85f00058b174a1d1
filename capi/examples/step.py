#!/usr/bin/env python3
"""A step on NumPy arrays through the C interface, beside the same in NumPy, after
cargo build --release --package hardmix-c:

    python3 capi/examples/step.py target/release/libhardmix_c.so"""

import ctypes as c
import sys

import numpy as np

B, K, d, N, s, t, tau = 8, 512, 32, 64, 32, 16, 0.2  # t is s′
hardmix = c.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libhardmix_c.so")
hardmix.hardmix_last_error.restype = c.c_char_p


def plain(x):  # an array is its address, None is NULL, a whole number has a pointer's width
    return c.c_void_p(x.ctypes.data) if isinstance(x, np.ndarray) else c.c_void_p(x) if x is None or isinstance(x, int) else x


def call(name, *arguments):
    if getattr(hardmix, name)(*map(plain, arguments)):
        raise RuntimeError(hardmix.hardmix_last_error().decode())


def struct(**fields):  # one of hardmix.h's: arrays, None, and numbers in ctypes' types
    kind = type("Struct", (c.Structure,), {"_fields_": [(name, type(plain(x))) for name, x in fields.items()]})
    return c.byref(kind(*map(plain, fields.values())))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


rng = np.random.default_rng(0)
q, k, rows = (unit(rng.standard_normal((n, d))).astype("f4") for n in (B, B, K))
loss, loss_rows, gradient, alpha, beta = (np.zeros(n, "f4") for n in (1, B, (B, d), (B, s), (B, t)))
hardest, first, second, pick = (np.zeros((B, n), "u4") for n in (N, s, s, t))
plan, queue = c.c_void_p(), c.c_void_p()
call("hardmix_plan_create", N, s, t, c.c_float(tau), c.byref(plan))
call("hardmix_queue_create", rows, None, K, d, c.c_int32(0), 0, c.byref(queue))
batch = struct(queries=q, keys=k, labels=None, rows=c.c_size_t(B), dim=c.c_size_t(d), row_offset=c.c_uint32(0))
draws = struct(seed=c.c_uint64(42), step=c.c_uint64(0), first=None, second=None, alpha=None, pick=None, beta=None)
output = struct(loss=loss, loss_rows=loss_rows, grad_queries=gradient, grad_keys=None, hardest=hardest, mixed_logits=None,
                query_mixed_logits=None, first=first, second=second, alpha=alpha, pick=pick, beta=beta, metrics=None)
call("hardmix_step", plan, batch, queue, draws, output)

# The same in NumPy, with the draws that were made: the hardest, the mixtures, the softmax.
q, k, rows, alpha, beta = (x.astype("f8") for x in (q, k, rows, alpha[..., None], beta[..., None]))
assert (np.sort(np.argsort(-(q @ rows.T), axis=1)[:, :N], axis=1) == hardest).all()
listed, row = rows[hardest], np.arange(B)[:, None]  # [B, N, d]
h = unit(alpha * listed[row, first] + (1 - alpha) * listed[row, second])
h_query = unit(beta * q[:, None] + (1 - beta) * listed[row, pick])
every = np.concatenate([k[:, None], np.broadcast_to(rows, (B, K, d)), h, h_query], axis=1)
logits = np.einsum("bd,bcd->bc", q, every) / tau
p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
expected = (np.einsum("bc,bcd->bd", p, every) - k) / tau / B
off = max(np.abs(loss_rows + np.log(p[:, 0])).max(), np.abs(gradient - expected).max())
assert off < 10 / tau * 2**-24, off  # ten roundings of logits of at most 1/τ
print(f"loss {loss[0]:.6f}, agrees with NumPy to {off:.1e}")
