import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr_jax.corpus import Corpus, Document, Query, QuerySet, read_collection
from gr_jax.errors import UserError
from gr_jax.evaluation import BM25, evaluate_run

SMALL = [
    ("d0", "Cats", "Cats purr and sleep."),
    ("d1", "Dogs", "A dog barks at cats"),
    ("d2", "", "the and of"),
    ("d3", "Birds", "Sparrows sing in spring"),
]


def make_corpus(rows) -> Corpus:
    return Corpus("small", tuple(Document(*row) for row in rows))


def test_ranks_by_title_and_text():
    bm25 = BM25(make_corpus(SMALL))
    [by_title, by_text] = bm25.search(["birds", "a cat? cats!"])
    assert [doc_id for doc_id, _ in by_title] == ["d3"]
    assert [doc_id for doc_id, _ in by_text] == ["d0", "d1"]
    assert by_text[0][1] > by_text[1][1] > 0


@pytest.mark.parametrize("query", ["", "the of and", "zebra", "?!"])
def test_no_known_word_finds_nothing(query):
    assert BM25(make_corpus(SMALL)).search([query, "sparrows"])[0] == []


def test_ties_follow_the_corpus_and_k_may_be_anything():
    rows = [(f"d{i}", "", "same words here") for i in (5, 3, 9, 1, 7)]
    bm25 = BM25(make_corpus([*rows, ("best", "", "words words")]))
    order = ["best", "d5", "d3", "d9", "d1", "d7"]
    for k in (1, 2, 3, 6, 100):
        [found] = bm25.search(["words"], k)
        assert [doc_id for doc_id, _ in found] == order[:k]
    assert bm25.search(["words"], 0) == [[]]
    assert bm25.search([], 5) == []


def test_a_corpus_without_words():
    bm25 = BM25(make_corpus([("d0", "", "the"), ("d1", "", "")]))
    assert bm25.search(["the cat"]) == [[]]
    assert bm25.index_bytes == 0


def test_stemming_is_a_choice():
    corpus = make_corpus(SMALL)
    assert [d for d, _ in BM25(corpus).search(["barking"])[0]] == []
    assert [d for d, _ in BM25(corpus, stemmer="english").search(["barking"])[0]] == ["d1"]
    with pytest.raises(UserError, match=r"unknown stemmer 'klingon': use one of .*english"):
        BM25(corpus, stemmer="klingon")


def test_rank_makes_a_run():
    bm25 = BM25(make_corpus(SMALL))
    queries = (Query("q1", "cats"), Query("q2", "zebra"))
    run, ms_per_query = bm25.rank(QuerySet("s", queries, {}), k=1)
    assert run == {"q1": bm25.search(["cats"], 1)[0], "q2": []}
    assert 0 < ms_per_query < 1000
    assert bm25.index_bytes > 0


def test_refuses_empty_input():
    with pytest.raises(UserError, match="corpus 'small' has no document"):
        BM25(make_corpus([]))
    with pytest.raises(UserError, match="query set 's' has no query"):
        BM25(make_corpus(SMALL)).rank(QuerySet("s", (), {}))


def test_prints_nothing_and_starts_no_accelerator():
    """Importing bm25s runs JAX where it finds it; our import is light and BM25 leaves JAX out."""
    code = (
        "import sys, logging, types\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "import gr_jax.evaluation as e\n"
        "heavy = {'jax', 'tensorflow', 'bm25s', 'ir_measures', 'matplotlib', 'rich', 'Stemmer'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "d = types.SimpleNamespace(doc_id='d', title='t', text='some words')\n"
        "b = e.BM25(types.SimpleNamespace(name='c', documents=(d,)))\n"
        "assert b.search(['words'])[0][0][0] == 'd'\n"
        "assert 'jax' not in sys.modules\n"
        "import jax\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; it is no part of the project."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("GR_JAX_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set GR_JAX_SHARED")
    return folder


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("squad2k", "test_seen", (0.781, 0.947, 0.841)),
        ("squad2k", "test_unseen", (0.791, 0.927, 0.842)),
        ("nq_passages", "dev", (0.759, 0.938, 0.825)),
    ],
)
def test_canary(shared_data, name, split, expected):
    collection = read_collection(shared_data / name)
    query_set = collection.splits[split]
    run, _ = BM25(collection.corpus).rank(query_set)
    found = evaluate_run(run, query_set.qrels)
    assert [found[m] for m in ("hits@1", "hits@10", "mrr@10")] == pytest.approx(expected, abs=0.005)
