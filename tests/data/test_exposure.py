"""How often documents were seen: arithmetic against walking through every step."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.data import Batches, MixtureCache, TaskCache, _exposure, measure_exposure
from gr_jax.docids import DocidMap

# d1 and d4 share a docid; d3's is a prefix of theirs, so that docids end with the end token
DOCIDS = DocidMap(
    ("d0", "d1", "d2", "d3", "d4", "d5"),
    np.array([[0, 1], [2, 0], [1, -1], [2, -1], [2, 0], [0, 0]], np.int32),
    (3, 2),
)


def make_cache(sizes=(7, 5), rates=(0.7, 0.3), docids=DOCIDS, seed=0) -> MixtureCache:
    rng = np.random.default_rng(seed)

    def task(name: str, size: int) -> TaskCache:
        rows = docids.tokens[rng.integers(0, len(docids) - 1, size)]  # the last is never taught
        ends = np.cumsum((rows > 0).sum(axis=1))
        return TaskCache(
            name,
            {"inputs": np.full(size, 9, np.int32), "targets": rows[rows > 0]},
            {
                "inputs": np.arange(size + 1, dtype=np.int64),
                "targets": np.concatenate([[0], ends]).astype(np.int64),
            },
        )

    return MixtureCache(tuple(task(f"task{n}", size) for n, size in enumerate(sizes)), rates)


def counted(cache: MixtureCache, docids: DocidMap, *, batch_size: int, seed: int, steps: int):
    """Task -> document -> times, by looking at every example of every step."""
    batches = Batches(cache, batch_size, 8, 1, docids.vocabulary.max_tokens, seed=seed)
    rows = [row[row > 0].tolist() for row in docids.tokens]
    found = {task.name: Counter() for task in cache.tasks}
    for step in range(steps):
        for task, example in batches.examples(step):
            target = task.example("targets", example).tolist()
            found[task.name].update(
                d for d, row in zip(docids.doc_ids, rows, strict=True) if row == target
            )
    return {name: [times[d] for d in docids.doc_ids] for name, times in found.items()}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    steps=st.integers(0, 30),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    sizes=st.sampled_from([(7, 5), (1, 12), (4, 0), (3,), (4, 5, 6)]),
)
def test_the_counts_are_those_of_every_step(steps, batch_size, seed, sizes):
    rates = (0.7, 0.3, 0.5)[: len(sizes)]
    cache = make_cache(sizes, rates)
    settings = {"batch_size": batch_size, "seed": seed, "steps": steps}
    found = measure_exposure(cache, DOCIDS, **settings)
    wanted = counted(cache, DOCIDS, **settings)
    assert {name: counts.tolist() for name, counts in found.counts.items()} == wanted
    assert found.total.tolist() == np.sum(list(wanted.values()), axis=0).tolist()


def test_blocks_change_nothing(monkeypatch):
    settings = {"batch_size": 4, "seed": 3, "steps": 11}
    whole = measure_exposure(make_cache(), DOCIDS, **settings)
    monkeypatch.setattr(_exposure, "_BLOCK", 2)
    for name, counts in measure_exposure(make_cache(), DOCIDS, **settings).counts.items():
        np.testing.assert_array_equal(counts, whole.counts[name])


def test_the_mean_is_what_is_expected_where_docids_are_unique():
    codes = np.stack(np.meshgrid(*[np.arange(4)] * 2), -1).reshape(-1, 2)
    docids = DocidMap(tuple(map(str, range(16))), codes, (4, 4))
    cache = make_cache((40, 24), (2.0, 1.0), docids)
    summary = measure_exposure(cache, docids, batch_size=12, seed=0, steps=8).summary()
    assert (summary["steps"], summary["documents"], summary["sharing"]) == (8, 16, 0)
    parts = {"total": summary["total"], **summary["tasks"]}
    for name, expected in (("total", 96 / 16), ("task0", 64 / 16), ("task1", 32 / 16)):
        figures = parts.pop(name)
        assert figures["mean"] == pytest.approx(figures["expected"])
        assert figures["expected"] == pytest.approx(expected)
        assert figures["never"] >= 1 and figures["min"] == 0
        assert figures["min"] <= figures["median"] <= figures["max"]
    assert not parts


def test_documents_that_share_a_docid_are_each_seen_and_told():
    found = measure_exposure(make_cache(), DOCIDS, batch_size=12, seed=0, steps=1)
    by_id = dict(zip(found.doc_ids, found.total.tolist(), strict=True))
    assert by_id["d1"] == by_id["d4"] > 0
    assert by_id["d5"] == 0
    assert found.summary()["sharing"] == 2
    assert sum(by_id.values()) == 12 + by_id["d4"]


def test_a_million_steps_take_no_longer_than_one():
    """12 million examples are read: whole epochs are not walked through."""
    found = measure_exposure(make_cache(), DOCIDS, batch_size=12, seed=0, steps=10**6)
    total = int(found.total.sum() - found.total[4])
    assert total == 12 * 10**6
    # every example of a task is read equally often, to one
    per_example = 0.7 * 12e6 / 7
    targets = Counter(tuple(make_cache().tasks[0].example("targets", n).tolist()) for n in range(7))
    for doc, row in enumerate(DOCIDS.tokens):
        examples = targets[tuple(row[row > 0].tolist())]
        assert abs(found.counts["task0"][doc] - examples * per_example) <= examples


def test_the_file_has_a_line_for_each_document(tmp_path):
    found = measure_exposure(make_cache(), DOCIDS, batch_size=4, seed=0, steps=5)
    found.write(tmp_path / "exposure.tsv")
    header, *lines = (tmp_path / "exposure.tsv").read_text("utf-8").splitlines()
    assert header.split("\t") == ["doc_id", "total", "task0", "task1"]
    rows = [line.split("\t") for line in lines]
    assert [row[0] for row in rows] == list(DOCIDS.doc_ids)
    assert [int(row[1]) for row in rows] == found.total.tolist()
    assert all(int(r[1]) == int(r[2]) + int(r[3]) for r in rows)


def test_a_docid_of_another_map_is_refused():
    other = dataclasses.replace(
        DOCIDS, codes=np.array([[0, 1], [1, 0], [1, -1], [0, 0], [0, 0], [2, 1]])
    )
    with pytest.raises(ValueError, match="no document has the docid"):
        measure_exposure(make_cache(), other, batch_size=4, seed=0, steps=5)


def test_places_are_those_of_the_sorted_order():
    order = DOCIDS.sorted_order
    for row, place in enumerate(DOCIDS.places(DOCIDS.tokens).tolist()):
        assert DOCIDS.tokens[order[place]].tolist() == DOCIDS.tokens[row].tolist()
        assert place == 0 or (DOCIDS.tokens[order[place - 1]] != DOCIDS.tokens[row]).any()
    # levels that need more than one word of 64 bits
    codes = np.random.default_rng(0).integers(0, 2**20, (50, 5))
    wide = DocidMap(tuple(map(str, range(50))), codes, (2**20,) * 5)
    assert wide.sorted_order[wide.places(wide.tokens)].tolist() == list(range(50))
