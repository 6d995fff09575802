"""What the search's matrix products reach on this machine, by number of rows (queries x beams).

    python -m benchmarks.products

80 products in a row, each with weights of its own (188 MB in float32), of 512 x 1152 and back: the
shapes of T5-small's layers, more of them than caches hold. One JSON line per number of rows, with
the median milliseconds of all 80, the rate at which weights are read, and FLOP/s.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.decode import device_name
from gr_jax.models._inference import _matmul

INNER, OUTER, PAIRS = 512, 1152, 40


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 10, 32, 160, 1600])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 2 * PAIRS)
    shapes = [(OUTER, INNER), (INNER, OUTER)] * PAIRS
    weights = [
        jax.random.normal(key, shape, options.dtype) / shape[1] ** 0.5
        for key, shape in zip(keys, shapes, strict=True)
    ]

    @jax.jit
    def program(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        for weight in weights:
            x = jnp.tanh(_matmul(x, weight))
        return x

    read = sum(weight.nbytes for weight in weights)
    for rows in options.rows:
        x = jnp.ones((rows, INNER), options.dtype)
        seconds = []
        for repetition in range(-2, options.repeats):
            start = time.perf_counter()
            jax.block_until_ready(program(x, weights))
            if repetition >= 0:
                seconds.append(time.perf_counter() - start)
        median = float(np.median(seconds))
        line = {
            "rows": rows,
            "dtype": options.dtype,
            "ms": round(1e3 * median, 2),
            "weights_gb_per_s": round(read / 1e9 / median, 1),
            "gflops": round(2e-9 * rows * read / weights[0].itemsize / median, 1),
            "device": device_name(),
            "jax": jax.__version__,
        }
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
