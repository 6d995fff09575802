import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gr_jax.corpus import Corpus, Document
from gr_jax.docids import AtomicDocids, DocidMap, HierarchicalKMeans
from gr_jax.docids._assigners import _assign_with_capacity, _balanced_kmeans
from gr_jax.docids._embeddings import load_embeddings, tfidf_svd_embeddings
from gr_jax.errors import UserError
from tests.conftest import TOPICS


def make(texts, title="") -> Corpus:
    documents = (Document(f"d{i}", title, text) for i, text in enumerate(texts))
    return Corpus("made", tuple(documents))


def topics(per_topic: int = 30, seed: int = 0) -> Corpus:
    """Documents of 8 words of one topic each, the topics in turn."""
    rng = random.Random(seed)
    vocabularies = [text.split() for text in TOPICS.values()]
    return make(" ".join(rng.choices(v, k=8)) for _ in range(per_topic) for v in vocabularies)


def check(docid_map: DocidMap, corpus: Corpus) -> None:
    """What every map of k-means owes: a docid each, of full length, and room respected."""
    assert docid_map.doc_ids == tuple(d.doc_id for d in corpus.documents)
    assert docid_map.unique and docid_map.prefix_free
    assert (docid_map.codes >= 0).all()
    sizes = docid_map.level_sizes
    for level in range(len(sizes)):
        _, counts = np.unique(docid_map.codes[:, :level], axis=0, return_counts=True)
        assert counts.max() <= math.prod(sizes[level:])


WORDS = [*"red blue green cat dog the of and".split(), "", "!?"]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), min_size=1),
    levels=st.integers(1, 4),
    slack=st.sampled_from([1.0, 1.3, 2.0]),
    seed=st.integers(0, 3),
)
def test_every_corpus_gets_unique_docids(texts, levels, slack, seed):
    corpus = make(texts)
    docid_map = HierarchicalKMeans(levels=levels, slack=slack, seed=seed).assign(corpus)
    check(docid_map, corpus)
    assert len(docid_map.level_sizes) == levels
    assert math.prod(docid_map.level_sizes) >= slack * len(corpus) - 1e-6


@pytest.mark.parametrize(
    "texts",
    [
        ["word"],
        ["the"],
        ["word", "word"],
        ["word", "bird"],
        ["the of", "and the", "to be or not"],
        ["red blue green"] * 27,
        ["red blue green"] * 13 + ["cat dog"] * 13 + ["the"],
        ["", "cat"],
    ],
    ids=lambda texts: f"{len(texts)}x{texts[0][:8]}",
)
def test_degenerate_corpora(texts):
    for branching in [None, (3, 3, 3), (27,), (1, 27), (27, 1), (2, 7, 2)]:
        corpus = make(texts)
        check(HierarchicalKMeans(branching=branching).assign(corpus), corpus)


@pytest.mark.parametrize("branching", [(3, 4, 5), (60,), (5, 4, 3), (1, 60), (60, 1), (2, 2, 15)])
def test_a_tree_can_be_filled_to_the_last_leaf(branching):
    corpus = topics(15)
    docid_map = HierarchicalKMeans(branching=branching).assign(corpus)
    check(docid_map, corpus)
    assert len(corpus) == math.prod(branching)  # so every leaf is taken
    assert docid_map.level_sizes == branching


@pytest.mark.parametrize(
    ("assigner", "pattern"),
    [
        (HierarchicalKMeans(branching=(3, 4)), r"\(3, 4\) has room for 12 documents.*has 20"),
        (HierarchicalKMeans(branching=(19,)), "room for 19"),
        (HierarchicalKMeans(branching=(5, 0, 9)), r"\(5, 0, 9\)"),
        (HierarchicalKMeans(branching=()), "branching"),
        (HierarchicalKMeans(slack=0.1), "room for"),
        (HierarchicalKMeans(levels=0), "levels is 0"),
    ],
)
def test_too_small_a_tree_is_refused(assigner, pattern):
    with pytest.raises(UserError, match=pattern):
        assigner.assign(topics(5))


def test_a_document_more_than_fits_is_refused_and_one_less_is_not():
    texts = [f"w{i}" for i in range(13)]
    assigner = HierarchicalKMeans(branching=(3, 4))
    with pytest.raises(UserError):
        assigner.assign(make(texts))
    for n in (12, 11):
        check(assigner.assign(make(texts[:n])), make(texts[:n]))


def test_provenance_says_how_and_survives_json():
    corpus = topics(5)
    docid_map = HierarchicalKMeans(seed=7, levels=2).assign(corpus)
    provenance = json.loads(json.dumps(docid_map.provenance))
    assert provenance["method"] == "hierarchical_kmeans"
    assert provenance["corpus"] == corpus.fingerprint
    assert provenance["seed"] == 7
    assert tuple(provenance["branching"]) == docid_map.level_sizes


# --- meaning


def same_first_code(docid_map: DocidMap, labels: np.ndarray) -> tuple[float, float]:
    """How often two documents share a first code: of one label, of two."""
    code = docid_map.codes[:, 0]
    shared = code[:, None] == code[None]
    other = ~np.eye(len(code), dtype=bool)
    same = labels[:, None] == labels[None]
    return shared[same & other].mean(), shared[~same].mean()


def test_documents_of_a_topic_share_first_codes():
    corpus = topics(30)
    labels = np.arange(len(corpus)) % len(TOPICS)
    docid_map = HierarchicalKMeans(branching=(4, 8, 8)).assign(corpus)
    within, across = same_first_code(docid_map, labels)
    assert within > 0.9 and across < 0.1  # chance is 0.25 for both


def test_titles_count():
    corpus = Corpus(
        "titles",
        tuple(Document(f"d{i}", "sailing" if i % 2 else "cooking", "same") for i in range(20)),
    )
    docid_map = HierarchicalKMeans(branching=(2, 20)).assign(corpus)
    assert same_first_code(docid_map, np.arange(20) % 2) == (1.0, 0.0)


def test_embeddings_of_the_user_are_what_is_clustered(tmp_path):
    corpus = make([f"w{i}" for i in range(40)])
    labels = np.random.default_rng(0).integers(0, 4, 40)
    points = np.eye(4)[labels] + 0.01 * np.random.default_rng(1).normal(size=(40, 4))
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "e.npy", points.astype(dtype))
        assigner = HierarchicalKMeans(branching=(4, 20), embeddings=str(tmp_path / "e.npy"))
        docid_map = assigner.assign(corpus)
        check(docid_map, corpus)
        assert same_first_code(docid_map, labels) == (1.0, 0.0)


def test_the_last_level_puts_neighbours_beside_each_other(tmp_path):
    line = np.random.default_rng(0).permutation(30).astype(np.float32)
    np.save(tmp_path / "e.npy", np.stack([line, 2 * line], axis=1))
    assigner = HierarchicalKMeans(branching=(30,), embeddings=str(tmp_path / "e.npy"))
    codes = assigner.assign(make(["x"] * 30)).codes[:, 0]
    assert (codes == line).all() or (codes == 29 - line).all()


# --- determinism

_ASSIGN = """
import sys
from gr_jax.docids import HierarchicalKMeans
from tests.docids.test_assigners import topics
embeddings = sys.argv[1] or None
print(HierarchicalKMeans(levels=2, embeddings=embeddings).assign(topics(40)).fingerprint)
"""


def test_same_docids_in_every_process(tmp_path):
    corpus = topics(40)
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(len(corpus), 16)))
    for embeddings in (None, str(tmp_path / "e.npy")):
        here = HierarchicalKMeans(levels=2, embeddings=embeddings).assign(corpus).fingerprint
        environment = {**os.environ, "PYTHONHASHSEED": "11", "OMP_NUM_THREADS": "4"}
        there = subprocess.run(
            [sys.executable, "-c", _ASSIGN, embeddings or ""],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=100,
        )
        assert there.stdout.split() == [here]


def test_seeds_give_different_docids():
    corpus = topics(20)
    fingerprints = {HierarchicalKMeans(seed=s).assign(corpus).fingerprint for s in range(3)}
    assert len(fingerprints) == 3


_THREADS = """
import sys
from gr_jax.docids import HierarchicalKMeans, _assigners
from tests.docids.test_assigners import topics
assign, seen = _assigners._assign_with_capacity, []
def spy(*args):
    from threadpoolctl import threadpool_info
    seen.extend(library["num_threads"] for library in threadpool_info())
    return assign(*args)
_assigners._assign_with_capacity = spy
HierarchicalKMeans(levels=2, embeddings=sys.argv[1]).assign(topics(10))
assert seen and set(seen) == {1}, seen
"""


def test_clusters_are_fitted_by_one_thread(tmp_path):
    # the order of a sum, hence a cluster, must not depend on the machine's cores
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(40, 4)))
    threads = {f"{library}_NUM_THREADS": "4" for library in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, "-c", _THREADS, str(tmp_path / "e.npy")]
    subprocess.run(command, check=True, env={**os.environ, **threads}, timeout=100)


# --- embeddings


def test_tfidf_embeddings_are_unit_vectors_of_meaning():
    corpus = make(["red cat", "red cat", "blue dog", "the of", "red dog bird fish"])
    embeddings = tfidf_svd_embeddings(corpus, dimensions=16)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), [1, 1, 1, 0, 1], atol=1e-6)
    likeness = embeddings @ embeddings.T
    np.testing.assert_allclose(likeness[0, 1], 1, atol=1e-6)
    assert likeness[0, 2] < 0.9


def _bad_embeddings(n: int):
    good = np.random.default_rng(0).normal(size=(n, 3))
    nan, inf = good.copy(), good.copy()
    nan[n - 1, 2], inf[0, 0] = np.nan, np.inf
    return {
        "a row less": (good[:-1], f"{n - 1} rows for {n} documents"),
        "a row more": (np.concatenate([good, good[:1]]), f"{n + 1} rows"),
        "not 2-D": (good[:, 0], "expected floats"),
        "no columns": (good[:, :0], "expected floats"),
        "integers": (good.astype(int), "expected floats"),
        "complex": (good.astype(complex), "expected floats"),
        "text": (good.astype(str), "expected floats"),
        "NaN": (nan, f"row {n - 1} is not finite"),
        "infinite": (inf, "row 0 is not finite"),
        "too large for float32": (good * 1e300, "row 0 is not finite"),
    }


@pytest.mark.parametrize("case", _bad_embeddings(5))
def test_wrong_embeddings_are_refused(tmp_path, case):
    array, words = _bad_embeddings(5)[case]
    path = tmp_path / "e.npy"
    np.save(path, array)
    with pytest.raises(UserError, match=words) as caught:
        HierarchicalKMeans(embeddings=str(path)).assign(make(list("abcde")))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_embeddings_are_refused(tmp_path):
    np.savez(tmp_path / "archive.npz", e=np.ones((2, 2)))
    np.save(tmp_path / "objects.npy", np.array([[{}], [{}]]), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.ones((2, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-5])
    (tmp_path / "text.npy").write_text("1.0 2.0\n3.0 4.0\n")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and nothing of a zip file")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.npy").mkdir()
    names = "archive.npz objects.npy cut.npy text.npy zip.npy empty.npy folder.npy missing.npy"
    for name in names.split():
        with pytest.raises(UserError, match=name):
            load_embeddings(tmp_path / name, 2)


# --- balance


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data())
def test_assignment_respects_room(data):
    m, k = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 6))
    capacity = data.draw(st.integers(-(-m // k), m))
    shape = (m, k)
    distance = data.draw(hnp.arrays(np.float64, shape, elements=st.integers(0, 5).map(float)))
    labels = _assign_with_capacity(distance.copy(), capacity)
    counts = np.bincount(labels, minlength=k)
    assert labels.shape == (m,) and ((labels >= 0) & (labels < k)).all()
    assert counts.sum() == m and counts.max() <= capacity
    nearest = distance.argmin(axis=1)
    wanted = np.bincount(nearest, minlength=k)
    if wanted.max() <= capacity:
        np.testing.assert_array_equal(labels, nearest)
    # whoever does not stand in the nearest cluster was sent away because it is full
    moved = labels != nearest
    assert (counts[nearest[moved]] == capacity).all()
    assert moved.sum() == np.maximum(wanted - capacity, 0).sum()


def test_those_move_who_lose_least():
    distance = np.array([[0.0, 9.0, 9.5], [0.0, 1.0, 3.0], [0.0, 5.0, 2.0], [0.0, 7.0, 8.0]])
    assert _assign_with_capacity(distance, 2).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("copies", [1, 5, 40])
def test_balanced_kmeans_of_identical_points(copies):
    points = np.repeat(np.eye(3, dtype=np.float32), copies, axis=0)
    labels = _balanced_kmeans(points, clusters=6, capacity=-(-len(points) // 6), seed=0)
    counts = np.bincount(labels)
    assert counts.sum() == len(points) and counts.max() <= -(-len(points) // 6)
    if copies == 40:  # two clusters for each of the three places
        assert all(len(np.unique(points[labels == c], axis=0)) == 1 for c in range(6))


def test_atomic_docids_number_the_documents():
    corpus = make(["x", "y", "z"])
    docid_map = AtomicDocids().assign(corpus)
    assert docid_map.codes.tolist() == [[0], [1], [2]]
    assert docid_map.level_sizes == (3,)
    assert docid_map.vocabulary.size == 5
    assert docid_map.provenance["corpus"] == corpus.fingerprint
