"""The training step: a pure function of state, batch, learning rate and seed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from gr_jax.errors import UserError
from gr_jax.models import LossSums, T5Config, cross_entropy_loss, decode_train, init_parameters
from gr_jax.training._partitioning import Partitioner, Rules
from gr_jax.training._restriction import Restriction


class TrainState(NamedTuple):
    """All that changes from step to step; the next step's examples follow from `step`.

    Attributes:
      step: int32, number of steps done.
      params: float32 parameters.
      opt_state: the optimizer's.
      ema: exponential moving average of `params`, or None.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any

    @property
    def eval_params(self) -> Any:
        """What to decode with: the average where there is one."""
        return self.params if self.ema is None else self.ema


class Start(NamedTuple):
    """Where a run begins that does not begin at random parameters.

    Attributes:
      origin: what it is, as JSON: a run that began elsewhere is another run.
      params: in their shardings; None for a run that only goes on.
      opt_state: the optimizer's; None for a fresh one.
    """

    origin: dict[str, Any]
    params: Any = None
    opt_state: Any = None


class StepMetrics(NamedTuple):
    """Means over the batch's target tokens, and the norm of all gradients, as device scalars.

    `sums` is what the means are made of, for each task of the mixture where they are told apart.
    """

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    sums: LossSums


def init_state(
    config: T5Config,
    optimizer: optax.GradientTransformationExtraArgs,
    partitioner: Partitioner,
    *,
    seed: int,
    ema: bool = False,
    start: Start | None = None,
) -> TrainState:
    """A fresh state, created in its shardings: no device ever holds more than its share.

    Args:
      config: the model.
      optimizer: see `Optimizer.make`.
      partitioner: gives the shardings.
      seed: of random parameters.
      ema: whether there is an average of the parameters.
      start: where to begin instead of at random parameters; donated.
    """
    if start is not None:
        assert start.params is not None
        shardings = state_shardings(config, optimizer, partitioner, ema)
        begin = functools.partial(_fresh, optimizer=optimizer, ema=ema)
        begin = jax.jit(begin, out_shardings=shardings, donate_argnums=(0, 1))
        return begin(start.params, start.opt_state)
    return _initializer(config, optimizer, partitioner, ema)(jax.random.key(seed))


@functools.lru_cache(maxsize=8)
def _initializer(
    config: T5Config,
    optimizer: optax.GradientTransformationExtraArgs,
    partitioner: Partitioner,
    ema: bool,
) -> Callable[[Array], TrainState]:
    param_shardings = partitioner.parameters(config)

    def init(key: Array) -> TrainState:
        params = init_parameters(config, key)
        params = jax.lax.with_sharding_constraint(params, param_shardings)
        return _fresh(params, optimizer=optimizer, ema=ema)

    return jax.jit(init, out_shardings=state_shardings(config, optimizer, partitioner, ema))


def abstract_state(
    config: T5Config,
    optimizer: optax.GradientTransformationExtraArgs,
    partitioner: Partitioner,
    *,
    ema: bool = False,
) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`'s result: what a checkpoint is restored to."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        _shapes(config, optimizer, ema),
        state_shardings(config, optimizer, partitioner, ema),
    )


def _shapes(
    config: T5Config, optimizer: optax.GradientTransformationExtraArgs, ema: bool
) -> TrainState:
    return jax.eval_shape(
        lambda: _fresh(init_parameters(config, jax.random.key(0)), optimizer=optimizer, ema=ema)
    )


@functools.lru_cache(maxsize=8)
def state_shardings(
    config: T5Config,
    optimizer: optax.GradientTransformationExtraArgs,
    partitioner: Partitioner,
    ema: bool,
) -> TrainState:
    """The sharding of every leaf of the state: moments go with their parameters."""
    state = _shapes(config, optimizer, ema)
    return moment_shardings(state, state.params, partitioner.parameters(config))


def moment_shardings(state: Any, params: Any, shardings: Any) -> Any:
    """The sharding of every leaf of a state of training or of an optimizer.

    Args:
      state: tree of what has shapes.
      params: tree of the parameters, or of their shapes.
      shardings: tree of their `NamedSharding`s.
    """
    flat = jax.tree.leaves(shardings)
    known = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), flat, strict=True
        )
    }
    replicated = NamedSharding(flat[0].mesh, PartitionSpec())

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> Any:
        # a moment stands in the optimizer's tree under the names of its parameter
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _fresh(
    params: Any,
    opt_state: Any = None,
    *,
    optimizer: optax.GradientTransformationExtraArgs,
    ema: bool,
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params) if opt_state is None else opt_state,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "config",
        "optimizer",
        "partitioner",
        "label_smoothing",
        "z_loss",
        "loss_normalizing_factor",
        "ema_decay",
        "microbatches",
        "num_tasks",
    ),
    donate_argnames=("state",),
)
def train_step(
    state: TrainState,
    batch: dict[str, Int[Array, "rows _"]],
    learning_rate: Float[Array, ""],
    dropout_key: Array,
    restriction: Restriction | None = None,
    *,
    config: T5Config,
    optimizer: optax.GradientTransformationExtraArgs,
    partitioner: Partitioner,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: float | None = None,
    ema_decay: float = 0.0,
    microbatches: int = 1,
    num_tasks: int = 0,
) -> tuple[TrainState, StepMetrics]:
    """One step of gradient descent.

    Args:
      state: donated: its buffers are reused.
      batch: see `gr_jax.data.PackedBatch.arrays`.
      learning_rate: of this step.
      dropout_key: of the run; the step is folded in.
      restriction: the tokens that the softmax is over; None for the whole target vocabulary.
      config: the model.
      optimizer: see `Optimizer.make`.
      partitioner: where arrays lie; the next state lies where this one does.
      label_smoothing: mass spread over the tokens that the softmax is over.
      z_loss: weight of log(Z)^2.
      loss_normalizing_factor: what the sum of the tokens' losses is divided by before its gradient
        is taken; None for the number of target tokens. Metrics are always means.
      ema_decay: of the parameter average, if the state has one.
      microbatches: parts that the rows are worked through in, one after the other.
      num_tasks: number of tasks of the mixture, whose sums are then told apart; 0 for one sum.

    Returns:
      The next state and this step's metrics.

    Raises:
      UserError: the rows do not divide by `microbatches`.
    """
    key = jax.random.fold_in(dropout_key, state.step)
    tokens = jnp.maximum((batch["decoder_target_tokens"] > 0).sum().astype(jnp.float32), 1.0)
    divisor = tokens if loss_normalizing_factor is None else loss_normalizing_factor

    def loss_fn(params, batch, key):
        with nn.logical_axis_rules(list(partitioner.rules)):
            logits = decode_train(config, params, batch, key if config.dropout_rate else None)
        targets, segments = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
        allowed = None
        if restriction is not None:
            allowed = restriction.allowed(targets, segments, logits.shape[-1])
        sums = cross_entropy_loss(
            logits,
            targets,
            allowed=allowed,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            tasks=batch["decoder_task_ids"] if num_tasks else None,
            num_tasks=num_tasks,
        )
        return sums.loss.sum() / divisor, sums

    gradients = jax.grad(loss_fn, has_aux=True)
    if microbatches == 1:
        grads, sums = gradients(state.params, batch, key)
    else:
        grads, sums = _accumulated(
            gradients, state.params, batch, key, partitioner.rules, microbatches, num_tasks
        )
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, learning_rate=learning_rate
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        # a short memory at first, so that the average forgets the initialisation
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)
    with nn.logical_axis_rules(list(partitioner.rules)):  # every process can read them
        sums = LossSums(*(nn.with_logical_constraint(x, (None,) * x.ndim) for x in sums))
    means = [x.sum() / tokens for x in (sums.loss, sums.z_loss, sums.correct)]
    metrics = StepMetrics(*means, gradient_norm=optax.tree.norm(grads), sums=sums)
    # else the compiler decides, and the second step is another program
    shardings = state_shardings(config, optimizer, partitioner, ema is not None)
    state = TrainState(state.step + 1, params, opt_state, ema)
    return jax.lax.with_sharding_constraint(state, shardings), metrics


def _accumulated(
    gradients: Callable[[Any, Any, Array], tuple[Any, LossSums]],
    params: Any,
    batch: dict[str, Int[Array, "rows _"]],
    key: Array,
    rules: Rules,
    microbatches: int,
    num_tasks: int = 0,
) -> tuple[Any, LossSums]:
    """`gradients` and sums of the whole batch, with the activations of a part of it in memory."""
    rows = len(batch["decoder_target_tokens"])
    if rows % microbatches:
        raise UserError(
            f"TrainConfig.microbatches={microbatches} does not divide the batch's {rows} rows"
        )

    def part(x: Int[Array, "rows _"]) -> Int[Array, "microbatches part _"]:
        # every n-th row: each device keeps the rows that it has, and parts are equally full
        x = x.reshape(rows // microbatches, microbatches, -1).swapaxes(0, 1)
        with nn.logical_axis_rules(list(rules)):
            return nn.with_logical_constraint(x, (None, "batch", None))  # pyright: ignore[reportReturnType]

    def add(total, this):
        index, rows = this
        more = gradients(params, rows, jax.random.fold_in(key, index))
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, more), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    shape = (num_tasks,) if num_tasks else ()
    nothing = LossSums(*(jnp.zeros(shape, jnp.float32) for _ in LossSums._fields))
    parts = (jnp.arange(microbatches), jax.tree.map(part, batch))
    total, _ = jax.lax.scan(add, (zeros, nothing), parts)
    return total
