"""Restrictions of docids that are counted, against those of docids that are there."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.decoding import Trie
from gr_jax.docids import DocidMap
from gr_jax.planning import Training, random_docids
from gr_jax.planning._restriction import abstract_restriction
from gr_jax.training import TrainConfig
from gr_jax.training._restriction import ChildrenRestriction, make_restriction
from tests.planning.test_plan import MODEL

SIZES = (5, 4, 3)


def map_of(rows, sizes=SIZES) -> DocidMap:
    codes = np.full((len(rows), len(sizes)), -1, np.int32)
    for line, row in zip(codes, rows, strict=True):
        line[: len(row)] = row
    return DocidMap(tuple(map(str, range(len(rows)))), codes, sizes)


def shapes(restriction) -> list[tuple[tuple[int, ...], str]]:
    return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(restriction)]


def children_of(docid_map) -> tuple[ChildrenRestriction, ChildrenRestriction]:
    """The restriction that training makes, and the planner's."""
    real = make_restriction("children", docid_map)
    planned = abstract_restriction("children", Trie.from_docid_map(docid_map).shape)
    assert isinstance(real, ChildrenRestriction) and isinstance(planned, ChildrenRestriction)
    return real, planned


def code(level):
    return st.integers(0, SIZES[level] - 1)


whole = st.lists(st.tuples(*map(code, range(3))), min_size=1, max_size=30)
any_length = st.lists(
    st.one_of(*(st.tuples(*map(code, range(n))) for n in (1, 2, 3))), min_size=1, max_size=30
)


@settings(deadline=None, max_examples=60)
@given(whole)
def test_sizes_are_exact_for_docids_of_all_levels(rows):
    real, planned = children_of(map_of(rows))
    assert shapes(planned) == shapes(real)
    assert (planned.vocabulary, planned.fan_out) == (real.vocabulary, real.fan_out)


@settings(deadline=None, max_examples=60)
@given(any_length)
def test_sizes_are_upper_bounds_for_docids_of_any_length(rows):
    real, planned = children_of(map_of(rows))
    assert len(real.token) <= planned.token.shape[0] <= 1 + (len(SIZES) + 1) * len(rows)
    assert real.fan_out <= planned.fan_out <= real.fan_out + 1


def test_atomic_docids_and_other_softmaxes():
    atomic = map_of([(i,) for i in range(7)], (7,))
    shape = Trie.from_docid_map(atomic).shape
    planned, real = abstract_restriction("children", shape), make_restriction("children", atomic)
    assert isinstance(planned, ChildrenRestriction) and planned.fan_out == 0
    assert shapes(planned) == shapes(real)
    assert abstract_restriction("level", shape) == make_restriction("level", atomic)
    assert abstract_restriction("full", shape) is None


def lowered(softmax):
    job = Training(
        MODEL, TrainConfig(softmax=softmax), rows=16, docids=random_docids(1000, 3, 16), tasks=2
    )
    return job.lower(jax.devices())[0]


def test_the_step_that_is_planned_has_the_runs_own_softmax():
    full, level, children = map(lowered, ("full", "level", "children"))
    arguments = [jax.tree.leaves(job.args_info) for job in (full, level, children)]
    assert len(arguments[0]) == len(arguments[1]) == len(arguments[2]) - 3
    tree = jax.tree.leaves(children.args_info[0][4])
    assert [x.shape[0] for x in tree] == [16, tree[1].shape[0], tree[1].shape[0] + 1]
    assert 1000 < tree[1].shape[0] < 1 + 3 * 1100
    texts = [job.as_text() for job in (full, level, children)]
    assert len(set(texts)) == 3
    assert texts[2].count("stablehlo.gather") > texts[0].count("stablehlo.gather")


def test_the_tasks_are_told_apart_as_in_a_run():
    *_, sums = lowered("full").out_info[1]
    assert sums.loss.shape == (2,)


def test_a_restricted_softmax_needs_docids():
    job = Training(MODEL, TrainConfig(softmax="children"), rows=16)
    with pytest.raises(ValueError, match="softmax='children' needs the docids"):
        job.lower(jax.devices())
