"""Views show what numpy shows, and read no more than they show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.checkpoints import _lazy
from gr_jax.checkpoints._lazy import LazyArray


class Counted:
    """An array that counts the bytes that are read of it."""

    def __init__(self, array: np.ndarray):
        self.array, self.bytes = array, 0
        self.lazy = LazyArray(array.shape, array.dtype, self.fetch)

    def fetch(self, index):
        assert all(0 <= s.start < s.stop <= n for s, n in zip(index, self.array.shape, strict=True))
        part = self.array[index]
        self.bytes += part.nbytes
        return part


@st.composite
def cases(draw):
    """A counted array, a view of it, what numpy makes of it, and how much more may be read."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=3)))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    counted = Counted(array)
    axis = draw(st.integers(0, len(shape) - 2))
    kind = draw(st.sampled_from(["transpose", "rows", "take", "merge", "split", "stack", "below"]))
    if kind == "transpose":
        return counted, _lazy.transpose(counted.lazy), array.T, 1
    if kind == "rows":
        a = draw(st.integers(0, shape[0]))
        b = draw(st.integers(a, shape[0]))
        return counted, _lazy.rows(counted.lazy, a, b), array[a:b], 1
    if kind == "take":
        at = draw(st.integers(0, shape[axis] - 1))
        return counted, _lazy.take(counted.lazy, at, axis), np.take(array, at, axis), 1
    if kind == "merge":
        wanted = array.reshape(*shape[:axis], -1, *shape[axis + 2 :])
        # the first and the last head are read whole
        return counted, _lazy.merge_axes(counted.lazy, axis), wanted, 2 * shape[axis + 1]
    if kind == "split":
        inner = draw(st.sampled_from([n for n in range(1, 6) if shape[axis] % n == 0]))
        wanted = array.reshape(*shape[:axis], -1, inner, *shape[axis + 1 :])
        return counted, _lazy.split_axis(counted.lazy, axis, inner), wanted, inner
    if kind == "stack":
        return counted, _lazy.stack([counted.lazy] * 3, axis), np.stack([array] * 3, axis), 1
    return counted, _lazy.concatenate([counted.lazy] * 3), np.concatenate([array] * 3), 1


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_views_are_numpys(data):
    counted, view, wanted, slack = data.draw(cases())
    assert view.shape == wanted.shape and view.dtype == wanted.dtype
    np.testing.assert_array_equal(view.read(), wanted)
    bounds = [data.draw(st.tuples(st.integers(0, n), st.integers(0, n))) for n in wanted.shape]
    index = tuple(slice(min(b), max(b)) for b in bounds)
    counted.bytes = 0
    part = view.read(index)
    np.testing.assert_array_equal(part, wanted[index])
    assert counted.bytes <= max(part.nbytes, 4) * slack


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(0, 6), max_size=3), limit=st.integers(1, 200))
def test_blocks_are_the_array_in_order(shape, limit):
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    blocks = list(LazyArray.of(array).blocks(limit))
    assert b"".join(block.tobytes() for block in blocks) == array.tobytes()
    row = array[:1].nbytes if shape else 4
    assert all(block.nbytes <= max(limit, row) for block in blocks)


def test_casts_and_steps():
    array = LazyArray.of(np.array([1.5, 2.25], np.float32))
    assert _lazy.cast(array, np.dtype(np.float32)) is array
    assert _lazy.cast(array, np.dtype(np.float16)).read().dtype == np.float16
    assert _lazy.reinterpret(array, np.dtype(np.uint32)).read().dtype == np.uint32
    assert _lazy.zeros((2, 3), like=array).read([slice(1, 2), slice(0, 2)]).shape == (1, 2)
    with pytest.raises(ValueError, match="step 1"):
        array.read([slice(0, 2, 2)])
