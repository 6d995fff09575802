"""Training: one jitted step on a mesh, checkpoints, metrics and the loop around them."""

from gr_jax.training._adafactor import Adafactor, AdafactorState
from gr_jax.training._checkpoints import (
    Checkpoints,
    RunIdentity,
    find_eval_checkpoint,
    load_eval_parameters,
    model_settings,
)
from gr_jax.training._goodput import describe_goodput, read_goodput
from gr_jax.training._loop import Interrupted, TrainConfig, measure_steps, train
from gr_jax.training._metrics import MetricsWriter, read_metrics
from gr_jax.training._optimizer import Optimizer
from gr_jax.training._partitioning import (
    Partitioner,
    Partitioning,
    logical_axis_rules,
    make_mesh,
    write_model_info,
)
from gr_jax.training._peak import peak_flops
from gr_jax.training._reporter import Progress
from gr_jax.training._restriction import SOFTMAXES, Softmax
from gr_jax.training._schedule import Schedule
from gr_jax.training._step import (
    Start,
    StepMetrics,
    TrainState,
    init_state,
    moment_shardings,
    train_step,
)

__all__ = [
    "SOFTMAXES",
    "Adafactor",
    "AdafactorState",
    "Checkpoints",
    "Interrupted",
    "MetricsWriter",
    "Optimizer",
    "Partitioner",
    "Partitioning",
    "Progress",
    "RunIdentity",
    "Schedule",
    "Softmax",
    "Start",
    "StepMetrics",
    "TrainConfig",
    "TrainState",
    "describe_goodput",
    "find_eval_checkpoint",
    "init_state",
    "load_eval_parameters",
    "logical_axis_rules",
    "make_mesh",
    "measure_steps",
    "model_settings",
    "moment_shardings",
    "peak_flops",
    "read_goodput",
    "read_metrics",
    "train",
    "train_step",
    "write_model_info",
]
