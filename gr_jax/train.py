"""Trains and evaluates: `python -m gr_jax.train --gin_file=FILE` (t5x's flags)."""

from __future__ import annotations

from gr_jax.allocator import keep_freed_memory

if __name__ == "__main__":  # before the imports that begin threads
    keep_freed_memory()

from pathlib import Path

from gr_jax import distributed, gin_config, pipeline
from gr_jax.console import Reporter
from gr_jax.training import Interrupted

INTERRUPTED = 130  # the shell's status for a program ended by SIGINT; launchers restart on it


def main(*, dry_run: bool = False) -> int:
    """Prepares, trains and evaluates what gin configures; a dry run prints that instead."""
    reporter = Reporter(quiet=not distributed.is_first())
    try:
        report = gin_config.call(
            pipeline.run,
            dry_run=dry_run,
            log=reporter.log,
            progress=reporter.progress,
            started=lambda directory: gin_config.save(Path(directory) / "config.gin"),
        )
    except Interrupted as stop:
        reporter.close()
        line = str(stop).partition("\n")[0]  # gin has added where it was called from
        reporter.log(f"{line}; the same command goes on from there")
        return INTERRUPTED
    finally:
        reporter.close()
    if dry_run:
        print(gin_config.operative())
    if report is None:  # a dry run, or not the first process
        return 0
    from gr_jax.evaluation import print_report

    print_report(report)
    return 0


if __name__ == "__main__":
    gin_config.run_main(main)
