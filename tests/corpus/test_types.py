import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax.corpus import Corpus, Document, Query, QuerySet


@pytest.mark.parametrize(
    ("title", "text", "body"),
    [
        ("T", "x y", "T. x y"),
        ("T", "", "T"),
        ("", "x y", "x y"),
        ("What is DSI?", "An index.", "What is DSI? An index."),
    ],
)
def test_body(title, text, body):
    assert Document("d", title, text).body == body


def test_values_are_frozen():
    for value in (Document("d", "", "x"), Query("q", "x"), Corpus("c", ())):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.name = "other"  # type: ignore[union-attr]


def test_relevant_is_grade_one_and_above_in_order():
    queries = QuerySet("s", (Query("q", "x"),), {"q": {"b": 2, "a": 1, "c": 0, "d": -1}})
    assert queries.relevant("q") == ("b", "a")
    assert len(queries) == 1


def test_fingerprint_is_of_content_and_order():
    a, b = Document("a", "", "x"), Document("b", "", "y")
    corpus = Corpus("one", (a, b))
    assert corpus.fingerprint == Corpus("other name", (a, b), skipped=("z",)).fingerprint
    assert corpus.fingerprint != Corpus("one", (b, a)).fingerprint
    assert corpus.fingerprint != Corpus("one", (a,)).fingerprint
    assert len(corpus.fingerprint) == 64
    assert corpus.doc_ids == {"a", "b"}


@given(st.lists(st.text(), min_size=3, max_size=3), st.lists(st.text(), min_size=3, max_size=3))
def test_fingerprint_tells_fields_apart(first, second):
    one, two = (Corpus("c", (Document(*fields),)) for fields in (first, second))
    assert (one.fingerprint == two.fingerprint) == (first == second)
