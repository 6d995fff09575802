"""One of a run's processes, which starts from a checkpoint of each format; for tests.

`python -m tests.pipeline.starts PORT INDEX CORPUS MODEL_DIRS VOCABULARY CHECKPOINT...`
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from gr_jax import distributed, pipeline, training
from gr_jax.pipeline import InitialCheckpoint
from tests.pipeline.tiny import settings


def main(port: str, index: str, corpus: str, folder: str, vocabulary: str, *paths: str) -> None:
    distributed.initialize(f"localhost:{port}", 2, int(index))
    split = training.Partitioning(parameter_partitions=2)
    arguments: dict[str, Any] = settings(steps=1, partitioning=split, ema_decay=0.0)
    arguments["data"] = dataclasses.replace(
        arguments["data"], sentencepiece=vocabulary, words_only=True
    )
    arguments["trainer"] = dataclasses.replace(
        arguments["trainer"], schedule=training.Schedule(base=1e-9, decay="constant")
    )
    for path in paths:
        pipeline.train(
            model_dir=str(Path(folder) / Path(path).name),
            corpus=corpus,
            initial=InitialCheckpoint(path),
            **arguments,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
