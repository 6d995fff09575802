"""An index of random weights: its search beside scoring every document."""

import dataclasses
import errno
import functools
import gc
import os
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gr_jax.corpus import read_corpus, read_titles
from gr_jax.data import load_tokenizer, train_tokenizer, write_bytes_vocabulary
from gr_jax.decoding import BeamSearch, SearchResult, Trie
from gr_jax.decoding import _beam as beam_module
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import T5Config, init_parameters, prepare_inference
from gr_jax.serving import (
    DEFAULT_SCORE,
    Index,
    IndexedCorpus,
    IndexSpec,
    Model,
    SearchConfig,
    write_tables,
)
from gr_jax.serving import _documents as documents_module
from gr_jax.serving import _index as index_module
from gr_jax.serving._documents import Documents
from gr_jax.training import Partitioner, Partitioning

QUERIES = ["which musicmark3 chord", "sailing tide", "soup", "comet orbit telescope", "", "deck"]
LEVELS = (6, 4, 4)
WIDE = SearchConfig(beam=48, score="full")
NARROW = SearchConfig(beam=2, score="full")


def make_index(beir: Path, folder: Path, scale: float = 2.0) -> Index:
    corpus = read_corpus(beir / "corpus.jsonl")
    vocabulary = folder / "sentencepiece.model"
    train_tokenizer((d.text for d in corpus.documents), vocabulary, vocab_size=200)
    tokenizer = load_tokenizer(vocabulary, words_only=True)
    rng = np.random.default_rng(0)
    chosen = rng.choice(int(np.prod(LEVELS)), len(corpus), replace=False)
    codes = np.stack(np.unravel_index(chosen, LEVELS), axis=1).astype(np.int32)
    docid_map = DocidMap(tuple(d.doc_id for d in corpus.documents), codes, LEVELS)
    model = T5Config(
        vocab_size=tokenizer.vocab_size,
        target_vocab_size=docid_map.vocabulary.size,
        emb_dim=32,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dtype="float32",
    )
    # larger weights than a fresh model's: scores that are far apart
    parameters = jax.tree.map(lambda x: x * scale, init_parameters(model, jax.random.key(0)))
    spec = IndexSpec(model, docid_map.fingerprint, True, 32, 0, "")
    prepare = functools.partial(prepare_inference, model, parameters)
    indexed = IndexedCorpus(docid_map, lambda: read_titles(beir / "corpus.jsonl"))
    return Index(spec, indexed, tokenizer, Model(prepare), 0)


@pytest.fixture(scope="module")
def index(beir, tmp_path_factory) -> Index:
    return make_index(beir, tmp_path_factory.mktemp("index"))


def names(ranked):
    return [[doc_id for doc_id, _ in ranking] for ranking in ranked]


def scores(ranked):
    return np.asarray([[score for _, score in ranking] for ranking in ranked])


def test_the_defaults():
    assert SearchConfig() == SearchConfig(100, DEFAULT_SCORE, None, False, 1024)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam is 0: a whole number of at least 1"),
        ({"beam": 2.5}, r"beam is 2\.5: a whole number"),
        ({"beam": True}, "beam is True: a whole number"),
        ({"most_beam": -1}, "most_beam is -1: a whole number"),
        ({"score": "best"}, "score is 'best': choose one of full, level, children"),
        (
            {"precision": "float8"},
            "precision is 'float8': choose one of float32, bfloat16, int8, or None",
        ),
    ],
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SearchConfig(**settings)


def test_a_wide_search_ranks_as_scoring_everything_does(index):
    """Score and precision reach the model, in the search and in the oracle."""
    found = {}
    for settings in ({}, {"score": "level"}, {"score": "children"}, {"precision": "bfloat16"}):
        config = dataclasses.replace(WIDE, **settings)
        searched = index.rank(QUERIES, k=48, config=config)
        exact = index.rank_exactly(QUERIES, k=48, config=config)
        if "precision" not in settings:  # coarse sums depend on their order
            assert names(searched) == names(exact)
            np.testing.assert_allclose(scores(searched), scores(exact), rtol=1e-4)
        for rank, ranked in (("search", searched), ("oracle", exact)):
            assert not any(np.allclose(scores(ranked), x) for x in found.get(rank, []))
            found.setdefault(rank, []).append(scores(ranked))


def test_equal_scores_are_in_the_order_of_docids(beir, tmp_path):
    """Of a model that knows nothing, in a search and in scoring everything alike."""
    index = make_index(beir, tmp_path, scale=0.0)
    by_docid = [index.docid_map.doc_ids[row] for row in index.docid_map.sorted_order]
    assert by_docid != list(index.docid_map.doc_ids)
    for rank in (index.rank, index.rank_exactly):
        assert names(rank(QUERIES[:1], k=48, config=WIDE)) == [by_docid]


@pytest.mark.parametrize("score", ["full", "children"])
def test_only_some_documents(index, score):
    """A search of a subset is the oracle's ranking without the other documents."""
    config = dataclasses.replace(WIDE, score=score)
    only = [doc_id for doc_id in index.docid_map.doc_ids if doc_id.startswith("music")]
    corpus = index
    if score == "children":  # relative to what may be returned
        others = [doc_id for doc_id in index.docid_map.doc_ids if doc_id not in only]
        corpus = index.refreshed(index.docid_map.without(others), {})
    everything = corpus.rank_exactly(QUERIES, k=48, config=config)
    found = index.documents(index.find(QUERIES, k=10, config=config, only=iter(only)))
    for ours, ranking in zip(found, everything, strict=True):
        kept = [(doc_id, s) for doc_id, s in ranking if doc_id in only][:10]
        assert [d for d, _ in ours] == [d for d, _ in kept]
        assert [s for _, s in ours] == pytest.approx([s for _, s in kept], rel=1e-3)
    results = index.search(QUERIES[0], k=5, config=config, only=only)
    assert [r.doc_id for r in results] == [d for d, _ in found[0]][:5]
    assert [r.rank for r in results] == [1, 2, 3, 4, 5]
    assert all(r.title.startswith("music") for r in results)


def test_a_subset_of_one_and_of_none(index):
    assert [r.doc_id for r in index.search("tide", only=["music3"])] == ["music3"]
    assert [r.doc_id for r in index.search("tide", only="music3")] == ["music3"]
    assert index.search("tide", only=[]) == []


def test_unknown_documents_of_a_subset_are_named(index):
    with pytest.raises(UserError, match=r"document 'nowhere' is not in the index$"):
        index.search("tide", only=["music3", "nowhere"])
    with pytest.raises(UserError, match=r"'a' is not in the index \(nor 2 others of those given\)"):
        index.search("tide", only=["a", "music3", "b", "c"])


def test_certified_answers_are_the_best_of_all(index):
    everything = index.rank_exactly(QUERIES, k=2, config=NARROW)
    narrow = index.find(QUERIES, k=2, config=NARROW)
    assert not narrow.exact.all()
    assert names(index.documents(narrow)) != names(everything)
    certified = index.find(QUERIES, k=2, config=dataclasses.replace(NARROW, exact=True))
    assert certified.exact.all()
    assert names(index.documents(certified)) == names(everything)
    assert certified.beam.max() > narrow.beam.max() == 2
    limited = dataclasses.replace(NARROW, exact=True, most_beam=3)
    assert not index.find(QUERIES, k=2, config=limited).exact.all()


def test_the_oracle_is_exact(index):
    found = index.find_exactly(QUERIES, k=3, config=NARROW)
    assert found.exact.all() and found.rows.shape == found.scores.shape == (len(QUERIES), 3)
    assert (found.beam == 48).all()


def test_a_search_is_as_wide_as_what_it_returns(index):
    assert len(index.rank(QUERIES[:1], k=30, config=NARROW)[0]) == 30
    assert NARROW.width(30) == 30 and NARROW.width(1) == 2


def test_no_documents_asked_for(index):
    with pytest.raises(UserError, match="k is 0"):
        index.search("tide", k=0)


def test_weights_are_prepared_once(index):
    assert index.precision() == "float32" and index.precision("int8") == "int8"
    assert index.weights() is index.weights("float32")
    assert index.weights("int8") is index.weights("int8")
    searches = [index.searcher(config, 2) for config in (WIDE, NARROW)]
    assert searches[0].weights is searches[1].weights
    assert (
        index.nbytes("int8") < index.nbytes("bfloat16") < index.nbytes() == index.nbytes("float32")
    )


def buffers(trie: Trie) -> set[int]:
    shards = [s for x in jax.tree.leaves(trie) for s in x.addressable_shards]
    return {shard.data.unsafe_buffer_pointer() for shard in shards}


@pytest.mark.parametrize("spread", [False, True])
def test_all_searches_share_one_trie(beir, tmp_path, monkeypatch, spread):
    """On one device, and on each of eight."""
    index, made = make_index(beir, tmp_path), []
    if spread:
        partitioner = Partitioner.make(Partitioning(model_parallel=2))
        parameters = partitioner.parameters(index.spec.model)
        fresh = jax.device_put(init_parameters(index.spec.model, jax.random.key(0)), parameters)
        model = Model(functools.partial(prepare_inference, index.spec.model, fresh))
        index = Index(index.spec, index.corpus, index.tokenizer, model, 0, partitioner)
    from_docid_map = Trie.from_docid_map
    monkeypatch.setattr(
        Trie, "from_docid_map", lambda docid_map: made.append(1) or from_docid_map(docid_map)
    )
    configs = (WIDE, NARROW, dataclasses.replace(NARROW, precision="bfloat16"))
    tries = [index.searcher(config, 2).trie for config in configs]
    assert index.nbytes() > 0 and len(made) == 1
    assert len(index.trie.lengths.sharding.device_set) == (8 if spread else 1)
    for trie in tries:
        assert buffers(trie) == buffers(index.trie)


def test_threads_that_come_together_make_each_part_once(beir, tmp_path, monkeypatch):
    made, threads = [], 4

    def slow(name: str, make):
        def counted(*args, **settings):
            made.append(name)
            time.sleep(0.05)  # long enough for the others to come
            return make(*args, **settings)

        return counted

    index = make_index(beir, tmp_path)
    monkeypatch.setattr(index._model, "_prepare", slow("weights", index._model._prepare))
    monkeypatch.setattr(Trie, "from_docid_map", slow("trie", Trie.from_docid_map))
    monkeypatch.setattr(Documents, "make", slow("documents", Documents.make))
    monkeypatch.setattr(index_module, "BeamSearch", slow("search", BeamSearch))
    barrier, searchers = threading.Barrier(threads), []

    def ask():
        barrier.wait()
        searchers.append(index.searcher(NARROW, 2))
        assert index.corpus.documents.rows_of(["music3"]).shape == (1,)

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert sorted(made) == ["documents", "search", "trie", "weights"]
    assert len(searchers) == threads and len(set(map(id, searchers))) == 1


def test_a_third_precision_takes_the_place_of_the_first(index):
    """And of the searches that hold on to it."""
    first = weakref.ref(index.searcher(dataclasses.replace(NARROW, precision="int8"), 2))
    for precision in ("bfloat16", "float32"):
        index.searcher(dataclasses.replace(NARROW, precision=precision), 2)
    gc.collect()
    assert first() is None


def test_a_refreshed_corpus_is_searched_by_the_same_program(index, monkeypatch):
    """Documents come and go; the old index goes on answering, and nothing is compiled."""
    left = index.docid_map.without(["music3"])
    used = {tuple(row) for row in index.docid_map.codes.tolist()}
    free = next(c for c in np.ndindex(LEVELS) if c not in used)
    docid_map = left.extended(["new"], np.asarray([free]))
    fresh = index.refreshed(docid_map, {"new": "A new one"})
    assert fresh.trie.shape == index.trie.shape and fresh.weights() is index.weights()
    (new,) = fresh.search("tide", k=1, config=NARROW, only=["new"])
    assert (new.title, new.docid) == ("A new one", "-".join(map(str, free)))
    index.search("tide", k=2, config=NARROW)
    program = beam_module._program("cpu")
    before = program._cache_size()
    assert len(fresh.search("tide", k=2, config=NARROW)) == 2
    assert program._cache_size() == before
    with pytest.raises(UserError, match="'music3' is not in the index"):
        fresh.search("tide", only=["music3"])
    assert index.search("tide", only=["music3"])
    other = DocidMap(("x",), np.asarray([[0, 1]]), (6, 4))
    with pytest.raises(UserError, match="the new docids do not fit the model"):
        index.refreshed(other, {})


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda index: index.find("sailing", k=2, config=NARROW), "queries is one text"),
        (lambda index: index.search(None), "a query is None: text is needed"),
        (lambda index: index.search("tide", k="2"), "k is '2': at least 1 document"),
        (lambda index: index.search("tide", only=[3]), "a document id is 3: text is needed"),
    ],
)
def test_what_is_no_question_is_one_line(index, ask, message):
    with pytest.raises(UserError, match=message):
        ask(index)


@pytest.mark.parametrize("bytes_only", [False, True])
def test_half_a_surrogate_pair_is_a_replacement_character(index, tmp_path, bytes_only):
    """As in a corpus; `gr-jax search $'\\xff'` has one."""
    tokenizer = index.tokenizer
    if bytes_only:
        write_bytes_vocabulary(tmp_path / "bytes")
        tokenizer = load_tokenizer(tmp_path / "bytes", words_only=False)
    asked = Index(index.spec, index.corpus, tokenizer, index._model, 0)
    tokens = asked.tokens(["\udcff tide", "\N{REPLACEMENT CHARACTER} tide"])
    assert tokens.any(axis=1).all()
    np.testing.assert_array_equal(tokens[0], tokens[1])


def test_documents_are_found_by_id():
    doc_ids = [f"d{i}" for i in range(300)] + ["ünï", ""]
    titles = [("ünï", "漢字"), ("nobody", "x"), ("d7", "seven"), ("d7", "again")]
    table = Documents.make(doc_ids, titles)
    assert [table.doc_id(row) for row in range(len(table))] == doc_ids
    assert (table.title(300), table.title(7), table.title(8)) == ("漢字", "seven", "")
    np.testing.assert_array_equal(table.rows_of(reversed(doc_ids)), np.arange(302)[::-1])


def test_ids_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(documents_module, "_hash", lambda _: 7)
    table = Documents.make(["a", "b", "c"], [])
    assert table.rows_of(["c", "a"]).tolist() == [2, 0]
    with pytest.raises(UserError, match=r"'x' is not in the index \(nor 1 others"):
        table.rows_of(["x", "b", "y"])


def corpus_of(folder: Path, index: Index) -> IndexedCorpus:
    """The corpus of `index` as a model directory keeps it."""
    index.docid_map.save(folder / "docids")
    titles = ((doc_id, f"title of {doc_id}") for doc_id in index.docid_map.doc_ids)
    return IndexedCorpus(folder / "docids", lambda: titles, folder)


def refuse(*_, **__):
    raise AssertionError("what is there is read")


def test_tables_are_made_once_and_read_afterwards(index, tmp_path, monkeypatch):
    """The second process reads neither the docids, nor the corpus, and sorts nothing."""
    first = corpus_of(tmp_path, index)
    assert first.documents.title(0).startswith("title of ") and first.trie.docid_count == 48
    monkeypatch.setattr(DocidMap, "load", refuse)
    monkeypatch.setattr(Trie, "from_docid_map", refuse)
    again = IndexedCorpus(tmp_path / "docids", refuse, tmp_path)
    assert len(again) == 48 and again.fingerprint == index.docid_map.fingerprint
    documents: Any = again.trie.documents
    assert isinstance(documents.base, np.memmap)
    for a, b in zip(jax.tree.leaves(first.trie), jax.tree.leaves(again.trie), strict=True):
        np.testing.assert_array_equal(a, b)
    for row in (0, 17, 47):
        assert again.documents.doc_id(row) == index.docid_map.doc_ids[row]
        assert again.documents.title(row) == first.documents.title(row)
        assert again.docid_string(row) == index.docid_map.docid_string(row)


@pytest.mark.parametrize("table", ["trie", "documents"])
@pytest.mark.parametrize("harm", ["cut", "foreign", "a file"])
def test_damaged_and_foreign_tables_are_made_again(index, tmp_path, table, harm):
    corpus_of(tmp_path, index)
    other = index.docid_map.without(["music3"])
    write_tables(tmp_path, other if harm == "foreign" else index.docid_map, [])
    if harm == "cut":
        largest = max((tmp_path / table).iterdir(), key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size - 1)
    elif harm == "a file":
        shutil.rmtree(tmp_path / table)
        (tmp_path / table).write_text("")
    corpus = corpus_of(tmp_path, index)
    assert corpus.trie.document_count == len(corpus.documents) == 48
    np.testing.assert_array_equal(corpus.trie.enumerate(), index.docid_map.codes)
    Trie.load(tmp_path / "trie", fingerprint=index.docid_map.fingerprint)
    Documents.load(tmp_path / "documents", index.docid_map.fingerprint)


def test_a_directory_that_cannot_be_written_is_read(index, tmp_path, monkeypatch):
    corpus = corpus_of(tmp_path, index)
    before = sorted(tmp_path.iterdir())

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert corpus.trie.document_count == len(corpus.documents) == 48
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("exactly", [False, True])
def test_latency_is_that_of_the_search(index, monkeypatch, exactly):
    """One query at a time, each answered once before it is timed, with the same settings."""
    asked: list[tuple[str, list[str], int, SearchConfig]] = []

    def watched(name: str, find, queries, *, k, config, **rest) -> SearchResult:
        asked.append((name, list(queries), k, config))
        return find(queries, k=k, config=config, **rest)

    for name in ("find", "find_exactly"):
        monkeypatch.setattr(index, name, functools.partial(watched, name, getattr(index, name)))
    config = SearchConfig(beam=7, score="level", precision="bfloat16", exact=True)
    assert index.latency(QUERIES, k=5, config=config, exactly=exactly, most=3).median > 0
    name = "find_exactly" if exactly else "find"
    assert asked == [(name, [query], 5, config) for query in QUERIES[:3] * 2]
    assert index.latency([], k=5, config=config) == (0, 0, 0)


FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.\n[allocator]"


def full(*_, **__):
    """What JAX does where a device's memory is full."""
    raise jax.errors.JaxRuntimeError(FULL)


@pytest.mark.parametrize("where", ["weights", "search", "oracle"])
def test_a_full_device_is_a_line_with_the_mend(beir, tmp_path, monkeypatch, where):
    index = make_index(beir, tmp_path)
    if where == "weights":
        monkeypatch.setattr(index._model, "_prepare", full)
    monkeypatch.setattr(BeamSearch, "search", full if where == "search" else BeamSearch.search)
    monkeypatch.setattr(index_module, "find_best", full)
    find = index.find_exactly if where == "oracle" else index.find
    with pytest.raises(UserError) as error:
        find(QUERIES, k=3, config=WIDE)
    message = str(error.value)
    assert "do not fit on one device (RESOURCE_EXHAUSTED: Out of memory while trying" in message
    assert "EvalConfig.partitioning=@training.Partitioning()" in message and "\n" not in message


def test_devices_that_share_a_model_may_be_full_too(beir, tmp_path, monkeypatch):
    index = make_index(beir, tmp_path)
    monkeypatch.setattr(index, "_devices", 8)
    monkeypatch.setattr(index._model, "_prepare", full)
    with pytest.raises(UserError, match=r"over 8 devices .*: Partitioning\.model_parallel says"):
        index.weights()

    def broken(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(index._model, "_prepare", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        index.weights()
