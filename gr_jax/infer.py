"""Answers queries: `python -m gr_jax.infer --gin_file=FILE --gin.QUERIES=...` (t5x's flags)."""

from __future__ import annotations

from gr_jax import gin_config, pipeline
from gr_jax.console import Reporter


def main() -> int:
    """Answers the queries that gin configures and writes a TREC run."""
    gin_config.call(pipeline.infer, log=Reporter().log)
    return 0


if __name__ == "__main__":
    gin_config.run_main(main)
