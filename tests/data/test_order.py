import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.data import mixture_positions, permute

quick = settings(deadline=None, derandomize=True, max_examples=100)


# --- permute


@quick
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**62 - 1))
def test_permute_is_a_bijection(size, seed):
    image = permute(np.arange(size), size, seed)
    assert image.dtype == np.int64
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


@quick
@given(size=st.integers(1, 5000), seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_a_seed_per_index_is_that_seeds_permutation(size, seeds):
    index = np.arange(len(seeds)) % size
    together = permute(index, size, np.array(seeds))
    assert together.tolist() == [
        int(permute(i, size, s)) for i, s in zip(index, seeds, strict=True)
    ]


@pytest.mark.parametrize("size", [2**31 + 11, 10**12, 2**62])
def test_large_sizes(size):
    index = np.unique(np.random.default_rng(0).integers(0, size, 5000))
    image = permute(index, size, 5)
    assert image.min() >= 0 and image.max() < size
    assert len(np.unique(image)) == len(index)
    assert (image != index).mean() > 0.99


def test_seeds_give_unrelated_orders():
    orders = np.stack([permute(np.arange(1000), 1000, seed) for seed in range(40)])
    same = (orders[:, None] == orders[None]).mean(axis=2)
    off_diagonal = same[~np.eye(len(orders), dtype=bool)]
    assert off_diagonal.max() < 0.008  # expected 0.001, standard deviation 0.001
    assert 0.0008 < off_diagonal.mean() < 0.0012
    # neither near its own place, nor near its neighbour's
    assert abs(np.corrcoef(np.arange(1000), orders[3])[0, 1]) < 0.12
    assert abs(np.corrcoef(orders[3][1:], orders[3][:-1])[0, 1]) < 0.12


@pytest.mark.parametrize("size", [2, 7, 16, 50, 64])
def test_every_item_goes_everywhere_equally_often(size):
    seeds = np.arange(20_000)
    for item in (0, size - 1):
        image = permute(np.full(len(seeds), item), size, seeds)
        counts = np.bincount(image, minlength=size)
        chi_square = ((counts - len(seeds) / size) ** 2 / (len(seeds) / size)).sum()
        # mean size - 1, standard deviation sqrt(2 (size - 1)); the seeds are fixed
        assert chi_square < (size - 1) + 5 * np.sqrt(2 * (size - 1))


def test_pairs_keep_no_distance():
    seeds = np.arange(20_000)
    a, b = (permute(np.full(len(seeds), item), 32, seeds) for item in (0, 1))
    counts = np.bincount((b - a) % 32, minlength=32)
    assert counts[0] == 0
    expected = len(seeds) / 31
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 30 + 5 * np.sqrt(60)


GOLDEN_PERMUTE = {
    (10, 0): [9, 5, 4, 0, 2, 1, 8, 6, 7, 3],
    (10, 1): [0, 1, 2, 8, 6, 4, 9, 3, 5, 7],
    (13, 2**61 + 7): [8, 5, 12, 7, 9, 6, 11, 4, 0, 10, 2, 1, 3],
}
GOLDEN_LARGE = [1427618947, 3421269115, 9080695787]


def test_permute_never_changes():
    """A trained model is reproduced by its seed: this order is part of the format."""
    for (size, seed), expected in GOLDEN_PERMUTE.items():
        assert permute(np.arange(size), size, seed).tolist() == expected
    assert permute(np.array([0, 1, 10**9]), 10**10, 3).tolist() == GOLDEN_LARGE


# --- mixture_positions


@st.composite
def mixtures(draw):
    k = draw(st.integers(1, 3))
    rates = draw(
        st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.33, 1.0, 2.5]), min_size=k, max_size=k)
    )
    sizes = draw(st.lists(st.integers(0, 12), min_size=k, max_size=k))
    if not any(r > 0 and n for r, n in zip(rates, sizes, strict=True)):
        rates[0], sizes[0] = 1.0, 5
    return draw(st.integers(1, 9)), rates, sizes, draw(st.integers(0, 2**70))


@quick
@given(mixtures())
def test_shares_are_exact_to_within_one_after_every_step(mixture):
    batch, rates, sizes, seed = mixture
    weights = [Fraction(r) if n else Fraction(0) for r, n in zip(rates, sizes, strict=True)]
    counts = np.zeros(len(rates), int)
    for step in range(25):
        tasks, examples = mixture_positions(step, batch, rates, sizes, seed)
        assert len(tasks) == len(examples) == batch
        assert (examples >= 0).all() and (examples < np.array(sizes)[tasks]).all()
        counts += np.bincount(tasks, minlength=len(rates))
        for count, weight in zip(counts.tolist(), weights, strict=True):
            assert abs(count - (step + 1) * batch * weight / sum(weights)) < 1
            assert weight or not count


@quick
@given(mixtures())
def test_every_example_once_before_any_again(mixture):
    batch, rates, sizes, seed = mixture
    read = [[] for _ in rates]
    for step in range(30):
        for task, example in zip(*mixture_positions(step, batch, rates, sizes, seed), strict=True):
            read[task].append(int(example))
    for examples, size in zip(read, sizes, strict=True):
        for start in range(0, len(examples), max(size, 1)):
            epoch = examples[start : start + size]
            assert len(set(epoch)) == len(epoch)
            assert len(epoch) < size or set(epoch) == set(range(size))


def test_each_epoch_and_each_task_has_an_order_of_its_own():
    steps = [mixture_positions(s, 200, [1, 1], [100, 100], seed=3) for s in range(3)]
    orders = {tuple(examples[tasks == t]) for tasks, examples in steps for t in (0, 1)}
    assert len(orders) == 6


def test_a_step_is_pure():
    want = [mixture_positions(s, 7, [3, 2, 1], [50, 9, 30], 4) for s in range(20)]
    np.random.seed(5)  # noqa: NPY002  what must not matter
    for s in reversed(range(20)):
        got = mixture_positions(s, 7, [3, 2, 1], [50, 9, 30], 4)
        np.testing.assert_array_equal(got, want[s])
    assert not np.array_equal(mixture_positions(0, 7, [3, 2, 1], [50, 9, 30], 5), want[0])


def test_seeds_of_any_size():
    # dates and hashes are popular; (seed * 10**12) does not fit 64 bits
    seen = set()
    for seed in (0, 20_240_101, 2**62 + 5, 2**64 + 1, 10**30, -1):
        _, examples = mixture_positions(0, 100, [1], [100], seed)
        assert sorted(examples.tolist()) == list(range(100))
        seen.add(tuple(examples))
    assert len(seen) == 6


def test_late_steps_are_as_quick_as_early_ones():
    arguments = (4096, [0.2, 0.5, 0.3], [10**6, 10**8, 12_345], 0)
    start = time.perf_counter()
    for step in range(10**6, 10**6 + 5):
        tasks, _ = mixture_positions(step, *arguments)
        assert abs((tasks == 1).sum() - 2048) <= 2
    assert (time.perf_counter() - start) / 5 < 0.1


@pytest.mark.parametrize(
    ("rates", "sizes"), [([0.0], [5]), ([1.0], [0]), ([1.0, 0.0], [0, 5]), ([2.0, -1.0], [5, 5])]
)
def test_nothing_to_read_is_refused(rates, sizes):
    with pytest.raises(ValueError):
        mixture_positions(0, 4, rates, sizes, 0)


def test_mixture_order_never_changes():
    tasks, examples = mixture_positions(5, 10, [1, 3, 2], [40, 17, 9], 11)
    assert tasks.tolist() == GOLDEN_TASKS
    assert examples.tolist() == GOLDEN_EXAMPLES


GOLDEN_TASKS = [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
GOLDEN_EXAMPLES = [19, 2, 10, 11, 9, 0, 2, 5, 7, 8]
