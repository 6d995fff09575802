"""Relative position buckets and hand-written gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from gr_jax.models._layers import _matmul, laid_out_gradient, relative_position_bucket
from gr_jax.training import make_mesh
from gr_jax.training._partitioning import logical_axis_rules
from tests.models import numpy_t5

SHAPES = [(32, 128), (8, 12), (4, 20), (64, 256)]


def buckets_of(positions, *, bidirectional, num_buckets=32, max_distance=128):
    return relative_position_bucket(
        np.asarray(positions),
        bidirectional=bidirectional,
        num_buckets=num_buckets,
        max_distance=max_distance,
    )


def test_values_computed_by_hand():
    # one-sided: 16 exact, then 16 * log(n / 16) / log(8) more, to 31
    one_sided = {5: 0, 0: 0, -1: 1, -15: 15, -16: 16, -17: 16, -19: 17, -32: 21, -64: 26, -127: 31}
    # two-sided: 8 exact, then 8 * log(n / 8) / log(16) more, to 15; later positions from 16 on
    two_sided = {0: 0, -7: 7, -8: 8, -11: 8, -12: 9, -16: 10, -32: 12, -64: 14, -127: 15, -999: 15}
    two_sided |= {1: 17, 7: 23, 8: 24, 16: 26, 128: 31, 999: 31}
    for table, bidirectional in ((one_sided, False), (two_sided, True)):
        found = buckets_of(list(table), bidirectional=bidirectional)
        assert found.dtype == np.int32
        assert dict(zip(table, found.tolist(), strict=True)) == table


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "furthest"), SHAPES)
def test_properties(count, furthest, bidirectional):
    positions = np.arange(-3 * furthest, 3 * furthest + 1)
    found = buckets_of(
        positions, bidirectional=bidirectional, num_buckets=count, max_distance=furthest
    )
    past, future = found[positions <= 0][::-1], found[positions >= 0]
    assert set(past) == set(range(count // 2 if bidirectional else count))
    assert (np.diff(past) >= 0).all() and (np.diff(past) <= 1).all()
    assert past[furthest:].min() == past.max(), "beyond the distance all share a bucket"
    if bidirectional:
        np.testing.assert_array_equal(future[1:], past[1:] + count // 2)
    else:
        assert (future == 0).all()
    expected = [
        numpy_t5.bucket(int(p), bidirectional=bidirectional, buckets=count, furthest=furthest)
        for p in positions
    ]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("batch", [(), (5,), (2, 5), (2, 3, 5)])
def test_matmul_gradient_is_that_of_the_plain_product(batch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((*batch, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    cotangent = jnp.asarray(rng.standard_normal((*batch, 6)), jnp.float32)
    ours, our_vjp = jax.vjp(_matmul, x, kernel)
    plain, plain_vjp = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-6)
    for a, b in zip(our_vjp(cotangent), plain_vjp(cotangent), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_gradient_is_laid_out_as_asked_for():
    mesh, rules = make_mesh(2), logical_axis_rules()
    axes = ("batch", "length", "joined_kv")
    x = jax.random.normal(jax.random.key(0), (4, 3, 6))
    w = jax.random.normal(jax.random.key(1), (4, 3, 6))

    def loss(x):
        with nn.logical_axis_rules(rules):  # and not around the backward pass
            return (laid_out_gradient(x, axes) * w).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss))(x)
    np.testing.assert_array_equal(gradient, w)
    wanted = NamedSharding(mesh, PartitionSpec(("replica", "data"), None, "model"))
    assert gradient.sharding.is_equivalent_to(wanted, 3)
