"""Evaluates: `python -m gr_jax.eval --gin_file=FILE` (t5x's flags)."""

from __future__ import annotations

from gr_jax.allocator import keep_freed_memory

if __name__ == "__main__":  # before the imports that begin threads
    keep_freed_memory()

from gr_jax import distributed, gin_config, pipeline
from gr_jax.console import Reporter


def main(*, dry_run: bool = False) -> int:
    """Evaluates the checkpoint that gin configures; a dry run prints the configuration instead."""
    report = distributed.only_first(
        "evaluation",
        lambda: gin_config.call(pipeline.evaluate, dry_run=dry_run, log=Reporter().log),
    )
    if dry_run:
        print(gin_config.operative())
    if report is None:  # a dry run, or not the first process
        return 0
    from gr_jax.evaluation import print_report

    print_report(report)
    return 0


if __name__ == "__main__":
    gin_config.run_main(main)
