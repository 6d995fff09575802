"""From a collection to a measured index, stage by stage; finished stages are not done again."""

from gr_jax.pipeline._collections import PYTHON_DOCS, load_collection
from gr_jax.pipeline._evaluate import EvalConfig, evaluate, evaluate_queries
from gr_jax.pipeline._exposure import exposure
from gr_jax.pipeline._initial import InitialCheckpoint
from gr_jax.pipeline._prepare import DataConfig, Prepared, prepare
from gr_jax.pipeline._run import infer, rounded_up, row_multiple, run, train
from gr_jax.pipeline._workspace import Workspace

__all__ = [
    "PYTHON_DOCS",
    "DataConfig",
    "EvalConfig",
    "InitialCheckpoint",
    "Prepared",
    "Workspace",
    "evaluate",
    "evaluate_queries",
    "exposure",
    "infer",
    "load_collection",
    "prepare",
    "rounded_up",
    "row_multiple",
    "run",
    "train",
]
