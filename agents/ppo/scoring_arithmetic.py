"""Arithmetic of the compiled network: logarithms and layers of float32 that become vector instructions.

Inner loops run over what lies side by side in memory and call nothing: a row needs hundreds of logarithms.

Dimension key: K inputs, H outputs.

References:
    [1] S. Moshier, Cephes mathematical library, `logf.c`: the polynomial of the logarithm.
"""

from __future__ import annotations

import numpy as np

from numa_rl.compilation import compiled

ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
# Coefficients of the logarithm's polynomial [1], the highest power first.
C8, C7, C6 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
C5, C4, C3 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
C2, C1, C0 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ROOT_HALF_BITS = np.int32(0x3F3504F3)  # of the float32 nearest to the root of 1/2
TO_ONE_BITS = np.int32(0x3F800000 - 0x3F3504F3)


@compiled
def log(x):
    """The natural logarithm of a positive normal float32, to 1.5e-7 of it or of 1."""
    bits = np.float32(x).view(np.int32)
    shifted = np.int32(bits + TO_ONE_BITS)
    exponent = np.float32(np.int32(np.int32(np.int32(shifted >> 23) & 0xFF) - 127))
    f = np.int32(np.int32(shifted & 0x007FFFFF) + ROOT_HALF_BITS).view(np.float32) - ONE
    square = f * f
    series = ((((((((C8 * f + C7) * f + C6) * f + C5) * f + C4) * f + C3) * f + C2) * f + C1) * f + C0) * f * square
    return exponent * LOG2_HIGH + (f + (series + exponent * LOG2_LOW - HALF * square))


@compiled
def log1p(x):
    """log(1 + x) of a float32 >= 0, to 2e-7 of it: log(u) loses what 1 + x rounds off, so that is added."""
    u = ONE + x
    return log(u) + (x - (u - ONE)) / u


@compiled
def write_log1p(values, out):
    """Write the logarithms of 1 + values; in place it would be no vector code."""
    for i in range(len(values)):
        out[i] = log1p(values[i])


@compiled
def add_product(x, weights, out):
    """Add x @ weights, four inputs at a time so that `out` is read and written less often."""
    whole = len(x) - len(x) % 4
    for k in range(0, whole, 4):
        a, b, c, d = x[k], x[k + 1], x[k + 2], x[k + 3]
        wa, wb, wc, wd = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for h in range(len(out)):
            out[h] += (a * wa[h] + b * wb[h]) + (c * wc[h] + d * wd[h])
    for k in range(whole, len(x)):
        a, wa = x[k], weights[k]
        for h in range(len(out)):
            out[h] += a * wa[h]


@compiled
def add_layer(x, weights, common, exists, out):
    """Write relu(x @ weights + common), or zeros for a node that does not exist."""
    if exists == ZERO:
        for h in range(len(out)):
            out[h] = ZERO
        return
    for h in range(len(out)):
        out[h] = common[h]
    add_product(x, weights, out)
    for h in range(len(out)):
        out[h] = max(out[h], ZERO) * exists
