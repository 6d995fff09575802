"""One of two processes of a run, up to its start from checkpoints; for tests.

`python -m tests.pipeline.starts PORT INDEX MODEL CHECKPOINT...`, MODEL being a config's JSON, of
ByT5's vocabulary. Prints what the encoder's parameters add up to, for each checkpoint.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax

from gr_jax import distributed
from gr_jax.models import T5Config
from gr_jax.pipeline import DataConfig, InitialCheckpoint, Workspace
from gr_jax.training import Optimizer, Partitioner, Partitioning


def main(port: str, index: str, model: str, *paths: str) -> None:
    distributed.initialize(f"localhost:{port}", 2, int(index))
    config = T5Config.from_json(model)
    no_cache: Any = None  # which random tables do not need
    shardings = Partitioner.make(Partitioning(parameter_partitions=2)).parameters(config)
    sums = {}
    for path in paths:
        initial = InitialCheckpoint(path)
        with distributed.first_process_first("preparation"):
            initial.check(config, DataConfig(sentencepiece="bytes"), Workspace(Path(path) / "new"))
        start = initial.start(
            config, no_cache, shardings, Optimizer(), seed=0, docid_fingerprint="f"
        )
        assert start is not None
        sums[path] = sum(float(leaf.sum()) for leaf in jax.tree.leaves(start.params["encoder"]))
    print(json.dumps(sums))


if __name__ == "__main__":
    main(*sys.argv[1:])
