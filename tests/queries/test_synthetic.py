import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from gr_jax.corpus import Corpus, Document, words
from gr_jax.errors import UserError
from gr_jax.queries import SyntheticQueries, WordTables
from gr_jax.queries._asked import IMPOSSIBLE, learn_asked_words
from gr_jax.queries._samplers import Samplers
from gr_jax.queries._tables import _DEFAULT_STARTS, BLANK, MIN_QUERIES, NONE

PLAIN: dict[str, Any] = {"title": 0.0, "variant": 0.0, "drop": 0.0, "noise": 0.0}
STYLE = {word for start in _DEFAULT_STARTS for word in start.split()}
SAMPLERS = ("terms", "asked", "skeleton", "span", "cloze", "sentence")
LEARNT = ("asked", "skeleton")


def make(n: int = 30, sentences: int = 4, seed: int = 0) -> Corpus:
    """Documents with words of their own, so that a word tells its document."""
    rng = random.Random(seed)
    documents = []
    for i in range(n):
        own = [f"doc{i}word{j}" for j in range(40)]
        text = ". ".join(
            " ".join(["The", *rng.sample(own, rng.randint(3, 6)), "is", rng.choice(own)])
            for _ in range(sentences)
        )
        documents.append(Document(f"d{i}", f"title{i} name", f"{text}."))
    return Corpus("made", tuple(documents))


def training(corpus: Corpus, n: int = 300) -> list[tuple[str, int]]:
    rng = random.Random(1)
    rows = [i % len(corpus) for i in range(n)]
    return [
        ("what is the " + " of ".join(rng.sample(words(corpus.documents[row].text), 2)), row)
        for row in rows
    ]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make()


@pytest.fixture(scope="module")
def samplers(corpus) -> Samplers:
    return Samplers.of(WordTables(corpus, training(corpus)), seed=0)


def draw(samplers: Samplers, name: str, each: int = 20, seed: int = 0):
    """(document row, list of words) of `each` queries a document."""
    rows = np.repeat(np.arange(len(samplers.tables.documents)), each)
    slots = samplers.by_name[name](np.random.default_rng(seed), rows)
    assert slots.shape[0] == len(rows)
    assert BLANK not in slots
    vocabulary = samplers.tables.vocabulary
    return [
        (row, [vocabulary[int(i)] for i in ids[ids != NONE]])
        for row, ids in zip(rows.tolist(), slots, strict=True)
    ]


# --- the samplers


@pytest.mark.parametrize("name", SAMPLERS)
def test_words_are_of_the_document_or_of_question_style(corpus, samplers, name):
    style = samplers.tables.style
    of_style = {samplers.tables.vocabulary[i] for i in style.function_words}
    of_style |= {samplers.tables.vocabulary[i] for i in style.starts.ravel() if i >= 0}
    of_style |= {samplers.tables.vocabulary[i] for i in style.skeletons.ravel() if i >= 0}
    allowed = set() if name in ("span", "sentence") else of_style
    own = [set(words(document.text)) for document in corpus.documents]
    queries = draw(samplers, name)
    with_own = 0
    for row, query in queries:
        # no other document's words, but where training queries made them question words
        assert set(query) <= own[row] | allowed
        with_own += any(word in own[row] for word in query)
    assert with_own > 0.95 * len(queries)


def test_a_span_is_contiguous(corpus, samplers):
    lengths = Counter()
    starts = set()
    for row, query in draw(samplers, "span", each=60):
        text = words(corpus.documents[row].text)
        assert f" {' '.join(query)} " in f" {' '.join(text)} "
        lengths[len(query)] += 1
        starts.add(" ".join(text).index(" ".join(query)))
    assert set(lengths) == set(range(4, 17))
    assert min(lengths.values()) > 0.5 * max(lengths.values())
    assert 0 in starts and len(starts) > 20


def test_a_sentence_is_one_of_the_document(corpus, samplers):
    seen = set()
    for row, query in draw(samplers, "sentence"):
        sentences = [words(s) for s in corpus.documents[row].text.split(". ")]
        assert query in sentences
        seen.add((row, tuple(query)))
    assert len(seen) > 0.95 * 4 * len(corpus)  # every sentence has its turn
    long = Corpus("long", (Document("d", "", " ".join(f"w{i}" for i in range(100))),))
    alone = Samplers.of(WordTables(long), seed=0)
    assert {tuple(q) for _, q in draw(alone, "sentence")} == {tuple(f"w{i}" for i in range(40))}


def test_cloze_is_a_span_with_words_cut_out(corpus, samplers):
    cut = 0
    for row, query in draw(samplers, "cloze"):
        text = words(corpus.documents[row].text)
        mine = [word for word in query if word.startswith("doc")]
        # in the order of the text
        rest = iter(text)
        assert all(word in rest for word in mine)
        joined = f" {' '.join(text)} "
        cut += f" {' '.join(mine)} " not in joined
        assert len(query) <= 23
    assert cut > 0.5 * 20 * len(corpus)


def test_terms_are_a_few_content_words(corpus, samplers):
    counts = Counter()
    for _, query in draw(samplers, "terms", each=50):
        mine = [word for word in query if word.startswith("doc")]
        assert len(mine) == len(set(mine)) or len(mine) <= 10
        assert 1 <= len(mine) <= 10
        counts[len(mine)] += 1
        assert len(query) <= 3 + 2 * 10
    assert len(counts) >= 6


def test_terms_prefer_rare_words():
    documents = [f"common shared usual rare{i} plain many{i % 3}" for i in range(30)]
    corpus = Corpus("c", tuple(Document(f"d{i}", "", t) for i, t in enumerate(documents)))
    samplers = Samplers.of(WordTables(corpus), seed=0)
    counts = Counter(re.sub(r"\d", "", w) for _, q in draw(samplers, "terms") for w in q)
    assert counts["rare"] > 1.3 * counts["common"]


def test_skeletons_are_training_queries_with_other_words(corpus, samplers):
    # all training queries are "what is the A of B"
    for row, query in draw(samplers, "skeleton"):
        own = set(words(corpus.documents[row].text))
        kept = [word for word in query if word not in own or word in ("the", "is")]
        assert "what" in kept and len(query) <= 24


def test_a_document_of_one_word():
    one = Corpus("one", (Document("a", "", "soup"), Document("b", "", "stew")))
    pairs = [(f"the {w} is what", row) for row, w in enumerate(["soup", "stew"])]
    pairs = [*pairs, ("the pot is what", 0)] * MIN_QUERIES
    samplers = Samplers.of(WordTables(one, pairs), seed=0)
    assert set(samplers.by_name) >= {"terms", "asked", "span", "cloze", "sentence"}
    for name in samplers.by_name:
        for row, query in draw(samplers, name):
            assert ["stew", "soup"][row] not in query
    for name in ("span", "sentence"):
        assert {(r, *q) for r, q in draw(samplers, name)} == {(0, "soup"), (1, "stew")}


# --- SyntheticQueries


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_document_gets_its_share(corpus, name):
    queries = SyntheticQueries(per_document=50, mix=((name, 1.0),))
    counts = Counter(row for _, row in queries.generate(corpus, training(corpus)))
    assert set(counts) == set(range(len(corpus)))
    assert max(counts.values()) <= 50
    assert sum(counts.values()) >= 0.99 * 50 * len(corpus)  # an empty query is left out


def test_span_without_drop_is_exact(corpus):
    queries = SyntheticQueries(per_document=7, mix=(("span", 1.0),), **PLAIN)
    counts = Counter(row for _, row in queries.generate(corpus))
    assert set(counts.values()) == {7} and len(counts) == len(corpus)


def test_queries_are_in_random_order(corpus):
    rows = [row for _, row in SyntheticQueries(per_document=20).generate(corpus)]
    repeats = sum(a == b for a, b in itertools.pairwise(rows)) / len(rows)
    assert repeats < 0.1  # expected 1/30
    first = Counter(rows[: len(rows) // 2])
    assert len(first) == len(corpus) and max(first.values()) < 20


@pytest.mark.parametrize("learnt", [False, True])
def test_seed_decides(corpus, learnt):
    pairs = training(corpus) if learnt else []
    queries = SyntheticQueries(per_document=5)
    want = list(queries.generate(corpus, pairs))
    np.random.seed(3)  # noqa: NPY002  what must not matter
    random.seed(3)
    state = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    other = SyntheticQueries(per_document=5, seed=1)
    got, others = [], []
    for a, b in itertools.zip_longest(queries.generate(corpus, pairs), other.generate(corpus)):
        got.append(a)  # two generations at once do not disturb each other
        others.append(b)
    assert [g for g in got if g] == want
    assert [o for o in others if o] != want
    after = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    assert after == state


_ELSEWHERE = """
import hashlib
from tests.queries.test_synthetic import *
made = list(SyntheticQueries(per_document=5).generate(make(), training(make())))
print(hashlib.sha256(repr(made).encode()).hexdigest())
"""


def test_another_process_gives_the_same():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _ELSEWHERE],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=100,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_mix_weights_are_shares(corpus):
    mix = (("span", 3.0), ("sentence", 1.0), ("terms", 0.0))
    made = SyntheticQueries(per_document=40, mix=mix, **PLAIN).generate(corpus)
    sentences = {
        " ".join(words(s)) for document in corpus.documents for s in document.text.split(". ")
    }
    whole = [text in sentences for text, _ in made]
    assert 0.22 < sum(whole) / len(whole) < 0.36  # a few spans are sentences too


def test_without_training_queries_learnt_samplers_are_passed_over(corpus):
    mix = (("asked", 5.0), ("skeleton", 5.0), ("span", 1.0))
    made = list(SyntheticQueries(per_document=5, mix=mix, **PLAIN).generate(corpus))
    alone = list(SyntheticQueries(per_document=5, mix=(("span", 1.0),), **PLAIN).generate(corpus))
    assert len(made) == len(alone) == 5 * len(corpus)
    for text, row in made:
        assert f" {text} " in f" {' '.join(words(corpus.documents[row].text))} "
    few = training(corpus, MIN_QUERIES - 1)
    assert not set(LEARNT) & set(Samplers.of(WordTables(corpus, few), 0).by_name)
    with pytest.raises(UserError, match=r"without training queries.*terms"):
        list(SyntheticQueries(mix=mix[:2]).generate(corpus))


@pytest.mark.parametrize(
    "mix",
    [(("termz", 1.0),), (("terms", -0.1),), (("terms", 1.0), ("", 1.0)), (("span", 0.0),), ()],
)
def test_wrong_mixes_are_refused(corpus, mix):
    with pytest.raises(UserError, match="mix") as caught:
        list(SyntheticQueries(mix=mix).generate(corpus))
    assert "\n" not in str(caught.value)


# --- how a query varies


def texts(corpus, pairs=(), **changes):
    settings: dict[str, Any] = {"per_document": 30, "mix": (("span", 1.0),)} | PLAIN | changes
    return list(SyntheticQueries(**settings).generate(corpus, pairs))


def test_titles_join(corpus):
    own = [set(words(d.title)) for d in corpus.documents]
    named = [bool(own[row] & set(text.split())) for text, row in texts(corpus, title=0.5)]
    assert 0.4 < np.mean(named) < 0.55
    assert not any(own[row] & set(text.split()) for text, row in texts(corpus, title=0.0))


def test_words_are_dropped(corpus):
    whole = sum(len(t.split()) for t, _ in texts(corpus))
    fewer = sum(len(t.split()) for t, _ in texts(corpus, drop=0.3))
    assert 0.66 < fewer / whole < 0.74
    assert texts(corpus, drop=1.0) == []  # every query came out empty


def test_variants_join():
    text = "players playing trumpets trumpet violin violins conductor conductors"
    corpus = Corpus("c", (Document("d", "", text),))
    words_ = {w for t, _ in texts(corpus, variant=1.0) for w in t.split()}
    assert words_ <= set(text.split())
    for t, _ in texts(corpus, variant=1.0, per_document=5, mix=(("sentence", 1.0),)):
        assert t == "playing players trumpet trumpets violins violin conductors conductor"


def test_noise_is_of_other_queries(corpus):
    pairs = [(f"what is the foreign{i % 9} of it", i % len(corpus)) for i in range(300)]
    made = texts(corpus, pairs, noise=1.0)
    noise = [sum(w.startswith("foreign") for w in t.split()) for t, _ in made]
    assert 0.8 < np.mean(noise) < 1.1 and max(noise) <= 3
    assert not any("foreign" in t for t, _ in texts(corpus, pairs))
    assert texts(corpus, noise=1.0)  # without queries there is none, and no error


# --- learning from training queries


def names_and_nouns(n: int = 60) -> Corpus:
    rng = random.Random(0)
    letters = "bcdfghklmnprstvz"

    def word() -> str:
        return "".join(rng.choice(letters) + rng.choice("aeiou") for _ in range(3))

    documents = []
    for i in range(n):
        sentences = [
            f"There {word()} the {word()} {word().capitalize()} by {word()} {word()}"
            for _ in range(4)
        ]
        documents.append(Document(f"d{i}", "", ". ".join(sentences) + "."))
    return Corpus("names", tuple(documents))


def ask_for_names(corpus: Corpus, n: int) -> list[tuple[str, int]]:
    rng = random.Random(2)
    pairs = []
    for i in range(n):
        row = i % len(corpus)
        names = re.findall(r" ([A-Z]\w+)", corpus.documents[row].text.replace(". There", ""))
        pairs.append((f"where is {rng.choice(names)} please", row))
    return pairs


def test_words_people_ask_with_are_preferred():
    corpus = names_and_nouns()
    tables = WordTables(corpus, ask_for_names(corpus, 400))
    asked = learn_asked_words(tables)
    assert asked is not None
    real = tables.documents >= 0
    content = real & ~tables.is_stop[tables.documents]
    name = content & tables.capital
    assert name.sum() == 4 * len(corpus)
    for logits in (asked.inside, asked.beside, asked.elsewhere):
        assert (logits[~real] == IMPOSSIBLE).all() and (logits[real] > IMPOSSIBLE / 2).all()
    others = content & ~name
    assert asked.inside[name].min() > asked.inside[others].max() + 1
    # a word of the sentence that is asked about is likelier than one of another
    assert (asked.inside[name] > asked.elsewhere[name]).mean() > 0.95
    samplers = Samplers(tables, asked)
    capitals = [set(np.array(tables.documents[r])[name[r]]) for r in range(len(corpus))]
    share = {}
    for sampler in ("asked", "terms"):
        hits = total = 0
        for row, query in draw(samplers, sampler, each=10):
            ids = [tables.vocabulary.index(w) for w in query]
            mine = [i for i in ids if not tables.is_stop[i] and i in tables.documents[row]]
            hits += sum(i in capitals[row] for i in mine)
            total += len(mine)
        share[sampler] = hits / total
    assert share["asked"] > share["terms"] + 0.2


@pytest.mark.parametrize("name", LEARNT)
def test_learnt_queries_are_about_one_sentence(name):
    corpus = names_and_nouns()
    rng = random.Random(3)
    pairs = []
    for i in range(400):
        sentence = rng.choice(corpus.documents[i % 60].text.split(". "))
        pairs.append((" ".join(["which", *rng.sample(words(sentence), 5)]), i % 60))
    samplers = Samplers.of(WordTables(corpus, pairs), seed=0)
    tables = samplers.tables
    together = total = 0
    for row, query in draw(samplers, name, each=10):
        place = {int(i): int(s) for i, s in zip(tables.documents[row], tables.sentence[row])}  # noqa: B905
        ids = (tables.vocabulary.index(w) for w in query if w.islower())
        mine = [place[i] for i in ids if i in place and not tables.is_stop[i]]
        for a, b in itertools.combinations(mine, 2):
            together += a == b
            total += 1
    assert total > 500
    assert together > 0.5 * total  # chance is a quarter


def test_learning_needs_enough_queries_and_a_choice(corpus):
    assert learn_asked_words(WordTables(corpus)) is None
    assert learn_asked_words(WordTables(corpus, training(corpus, MIN_QUERIES - 1))) is None
    nothing_shared = [("unheard of", 0)] * MIN_QUERIES
    strange = Corpus("c", (Document("d", "", "soup stew"),))
    assert learn_asked_words(WordTables(strange, nothing_shared)) is None
    all_shared = [("soup stew", 0)] * MIN_QUERIES
    assert learn_asked_words(WordTables(strange, all_shared)) is None


def test_style_is_learnt(corpus):
    starts = Counter()
    pairs = training(corpus)
    for text, _ in texts(corpus, pairs, mix=(("terms", 1.0),)):
        starts[text.split()[0]] += 1
    assert starts["what"] > 0.5 * sum(starts.values())
    assert not STYLE & (set(starts) - {"what", "is", "the"})


@pytest.mark.parametrize("query", ["soup", "soup stew", "how to"])
def test_short_training_queries(query):
    text = "soup stew broth and bread"
    corpus = Corpus("c", tuple(Document(f"d{i}", "", text) for i in range(3)))
    for n in (1, MIN_QUERIES):
        made = SyntheticQueries(per_document=10).generate(corpus, [(query, 1)] * n)
        assert len(list(made)) >= 27


def wordless(query: str, text: str, n: int):
    documents = (Document("a", "", text), Document("b", "", "soup stew and bread for all"))
    pairs = [(query, i % 2) for i in range(n)]
    made = list(SyntheticQueries(per_document=20).generate(Corpus("c", documents), pairs))
    assert sum(row == 1 for _, row in made) >= 19


@pytest.mark.parametrize("text", ["!!! ...", "\U0001f600"], ids=ascii)
def test_documents_without_words(text):
    wordless("soup of the day", text, 0)


def test_training_queries_for_documents_without_words():
    wordless("soup of the day", "!!! ...", MIN_QUERIES)


def test_training_queries_without_words():
    wordless("???", "stew", MIN_QUERIES)


# --- cost


def test_a_hundred_thousand_queries_take_seconds():
    corpus = make(1000, sentences=8)
    queries = SyntheticQueries(per_document=100)
    pairs = training(corpus, 500)
    start = time.process_time()
    count = sum(1 for _ in queries.generate(corpus, pairs))
    assert count >= 99_000
    assert time.process_time() - start < 30  # about 5 on an idle core
