"""The layers of T5, with t5x's parameter names and 2-D kernels.

T5 has no biases, no 1/sqrt(d) in attention (its query initialiser carries it), RMSNorm before each
sub-layer, and one table of relative position biases per stack (umT5: per layer). Parameters are
float32 and carry logical axis names (`nn.with_logical_partitioning`); `gr_jax.training` maps those
to a mesh.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from gr_jax.models._config import T5Config

_dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_attention_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
MASKED = -1e10  # a masked attention score; t5x's value
RMS_EPSILON = 1e-6
PRODUCT = "product"  # what `jax.checkpoint` policies know a product with a parameter by


def activation(name: str) -> Callable[[Array], Array]:
    return (lambda x: x) if name == "linear" else getattr(nn, name)


def _parameter(
    module: nn.Module, name: str, init: Callable, axes: tuple[str, ...], shape: tuple[int, ...]
) -> Array:
    """A float32 parameter with a logical name for each axis."""
    boxed = nn.with_logical_partitioning(init, axes)
    return module.param(name, boxed, shape, jnp.float32)  # pyright: ignore[reportReturnType]


@jax.custom_vjp
def _matmul(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """`x @ kernel`, whose gradients are contractions that XLA's CPU backend has fast kernels for.

    JAX's own transpose of a bfloat16 product takes 15 times as long there (it transposes its
    operands first, onto a path without AMX); on other backends the two are the same.
    """
    return jnp.einsum("...k,kn->...n", x, kernel)


def _matmul_forward(x, kernel):
    return _matmul(x, kernel), (x, kernel)


def _matmul_backward(saved, g):
    x, kernel = saved
    if x.dtype == jnp.float32:
        # or XLA's CPU backend computes `x` once more, transposed, by strided reads: a quarter of
        # the step
        x = jax.lax.optimization_barrier(x)
    batch = "abcd"[: x.ndim - 1]
    return (
        jnp.einsum("...n,kn->...k", g, kernel),
        jnp.einsum(f"{batch}k,{batch}n->kn", x, g),
    )


_matmul.defvjp(_matmul_forward, _matmul_backward)


def laid_out_gradient(x: Float[Array, "*b d"], axes: tuple[str, ...]) -> Float[Array, "*b d"]:
    """`x`, whose gradient is laid out by logical `axes`.

    What many layers read has a gradient from each. Over a `model` axis each is a sum over devices:
    laid out by features, it is scattered as it is summed, and only the total is gathered. Without
    such an axis nothing is done.
    """
    if jax.sharding.get_abstract_mesh().shape.get("model", 1) == 1:
        return x
    # the backward pass is traced later, where these rules are no longer
    return _scattered(x, axes, tuple(nn.get_logical_axis_rules()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _scattered(x, axes, rules):
    del axes, rules
    return x


def _scattered_forward(x, axes, rules):
    return _scattered(x, axes, rules), None


def _scattered_backward(axes, rules, _, g):
    with nn.logical_axis_rules(rules):
        return (nn.with_logical_constraint(g, axes),)


_scattered.defvjp(_scattered_forward, _scattered_backward)


class Dense(nn.Module):
    """A bias-free linear layer with a 2-D `kernel` [in, features]."""

    features: int
    axes: tuple[str, str]
    dtype: str
    init_scale: float = 1.0
    kernel_init: Callable = _dense_init

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Returns `x @ kernel` in `dtype`."""

        def init(key, shape, dtype):
            return self.kernel_init(key, shape, dtype) * self.init_scale

        kernel = _parameter(self, "kernel", init, self.axes, (x.shape[-1], self.features))
        product = _matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        # policies do not look into a custom_vjp: they would not find the product by its operation
        return checkpoint_name(product, PRODUCT)


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, computed in float32."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Returns `x` with unit root mean square, times `scale`."""
        x = x.astype(jnp.float32)
        scale = _parameter(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + RMS_EPSILON)
        return (y * scale).astype(self.dtype)


class Embed(nn.Module):
    """A token table `embedding` [vocab, embed]."""

    num_embeddings: int
    features: int
    dtype: str
    init: float

    def setup(self):
        """Creates the table."""
        init = nn.initializers.normal(self.init)
        shape = (self.num_embeddings, self.features)
        self.embedding = _parameter(self, "embedding", init, ("vocab", "embed"), shape)

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Returns the rows of `ids`."""
        return self.embedding.astype(self.dtype)[ids]

    def attend(self, x: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Scores `x` against every row: the tied output layer of T5 1.0."""
        return x @ self.embedding.astype(x.dtype).T


def relative_position_bucket(
    relative_position: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Buckets of `memory_position - query_position` (T5's scheme; Raffel et al. 2020, 2.1).

    Half of the buckets hold one distance each, the others logarithmically wider ranges up to
    `max_distance`; with `bidirectional`, positive and negative distances have half of them each.

    Returns:
      int32 of the input's shape, in [0, num_buckets).
    """
    bucket = np.zeros_like(relative_position)
    n = -relative_position
    if bidirectional:
        num_buckets //= 2
        bucket += (n < 0) * num_buckets
        n = np.abs(n)
    else:
        n = np.maximum(n, 0)
    exact = num_buckets // 2
    # float32 as in t5x and Hugging Face, so that borders between buckets fall alike
    ratio = np.log(np.maximum(n, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
    large = exact + (ratio * (num_buckets - exact)).astype(np.int32)
    large = np.minimum(large, num_buckets - 1)
    return (bucket + np.where(n < exact, n, large)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """One learnt bias per (head, bucket of relative position)."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions: np.ndarray, key_positions: np.ndarray):
        """Returns biases [1, heads, queries, keys] for static integer positions."""
        c = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        shape = (c.num_heads, c.relpos_buckets)
        table = _parameter(self, "rel_embedding", init, ("heads", "relpos_buckets"), shape)
        buckets = relative_position_bucket(
            key_positions[None, :] - query_positions[:, None],
            bidirectional=self.bidirectional,
            num_buckets=c.relpos_buckets,
            max_distance=c.relpos_max_distance,
        )
        return table.astype(c.dtype)[:, buckets][None]


class Attention(nn.Module):
    """Multi-head attention with separate projections."""

    config: T5Config

    def setup(self):
        """Creates the four projections."""
        c = self.config

        def project(features, axes, scale=1.0):
            return Dense(features, axes, c.dtype, scale, _attention_init)

        joined = c.num_heads * c.head_dim
        inward = ("embed", "joined_kv")
        # T5 folds attention's 1/sqrt(head_dim) into the query's initialisation
        self.query = project(joined, inward, 1 / math.sqrt(c.head_dim))
        self.key = project(joined, inward)
        self.value = project(joined, inward)
        self.out = project(c.emb_dim, ("joined_kv", "embed"))
        self.drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def heads(self, x: Float[Array, "*b hd"]) -> Float[Array, "*b h d"]:
        """Splits the joined axis into heads."""
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def __call__(
        self,
        x: Float[Array, "b q d"],
        memory: Float[Array, "b k d"],
        mask: Bool[Array, "b 1 q k"],
        bias: Float[Array, "1 h q k"] | None,
        deterministic: bool,
    ) -> Float[Array, "b q d"]:
        """Attends from every position of `x` to the unmasked positions of `memory`."""
        query = self.heads(self.query(x))
        key, value = self.heads(self.key(memory)), self.heads(self.value(memory))
        query = nn.with_logical_constraint(query, ("batch", "length", "heads", "kv"))
        key = nn.with_logical_constraint(key, ("batch", "length", "heads", "kv"))
        value = nn.with_logical_constraint(value, ("batch", "length", "heads", "kv"))
        # [batch, q, heads, kv] x [batch, k, heads, kv] -> [batch, heads, q, k]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        if bias is not None:
            scores = scores + bias
        weights = _masked_softmax(scores, mask, self.config.dtype)
        weights = self.drop(weights, deterministic=deterministic)
        # [batch, heads, q, k] x [batch, k, heads, kv] -> [batch, heads, q, kv]
        mixed = jnp.einsum("bhqk,bkhd->bhqd", weights, value)
        # -> [batch, q, heads * kv]
        mixed = jnp.swapaxes(mixed, 1, 2)
        return self.out(mixed.reshape(*mixed.shape[:2], -1))


def _masked_softmax(scores: Array, mask: Array, dtype: str) -> Array:
    scores = jnp.where(mask, scores.astype(jnp.float32), MASKED)
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


class Mlp(nn.Module):
    """T5's feed-forward block: the product of the activated projections, projected back."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], deterministic: bool) -> Float[Array, "*b d"]:
        """Applies the block to each position."""
        c = self.config
        names: Sequence[str] = (
            ["wi"]
            if len(c.mlp_activations) == 1
            else [f"wi_{i}" for i in range(len(c.mlp_activations))]
        )
        hidden = None
        for name, function in zip(names, c.mlp_activations, strict=True):
            part = activation(function)(Dense(c.mlp_dim, ("embed", "mlp"), c.dtype, name=name)(x))
            hidden = part if hidden is None else hidden * part
        hidden = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))(
            hidden, deterministic=deterministic
        )
        return Dense(c.emb_dim, ("mlp", "embed"), c.dtype, name="wo")(hidden)
