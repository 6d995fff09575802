"""Evaluates: `python -m gr_jax.eval --gin_file=FILE` (t5x's flags)."""

from __future__ import annotations

from gr_jax import gin_config, pipeline
from gr_jax.console import Reporter


def main() -> int:
    """Evaluates the newest checkpoint of what gin configures."""
    report = gin_config.call(pipeline.evaluate, log=Reporter().log)
    from gr_jax.evaluation import print_report

    print_report(report)
    return 0


if __name__ == "__main__":
    gin_config.run_main(main)
