"""Answers queries: `python -m gr_jax.infer --gin_file=FILE --gin.QUERIES=...` (t5x's flags)."""

from __future__ import annotations

from gr_jax.allocator import keep_freed_memory

if __name__ == "__main__":  # before the imports that begin threads
    keep_freed_memory()

from gr_jax import distributed, gin_config, pipeline
from gr_jax.console import Reporter


def main(*, dry_run: bool = False) -> int:
    """Writes a TREC run for the queries of gin's; a dry run prints the configuration instead."""
    distributed.only_first(
        "inference", lambda: gin_config.call(pipeline.infer, dry_run=dry_run, log=Reporter().log)
    )
    if dry_run:
        print(gin_config.operative())
    return 0


if __name__ == "__main__":
    gin_config.run_main(main)
