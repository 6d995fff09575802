"""Reading and writing of collections, and every way in which a file can be wrong."""

import gzip
import json
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr_jax.corpus import (
    Corpus,
    Document,
    Query,
    read_collection,
    read_corpus,
    read_qrels,
    read_queries,
    read_query_set,
    write_corpus,
)
from gr_jax.errors import UserError

DOCUMENTS = [
    {"_id": "d1", "title": "One", "text": "first text"},
    {"_id": "d2", "title": "", "text": "second"},
    {"_id": "d3", "text": "third", "metadata": {"url": "x"}},
]
QUERIES = [{"_id": "q2", "text": "two"}, {"_id": "q1", "text": "one"}, {"_id": "q3", "text": "3"}]
HEADER = "query-id\tcorpus-id\tscore\n"


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "toy"
    write(folder / "corpus.jsonl", jsonl(*DOCUMENTS))
    write(folder / "queries.jsonl", jsonl(*QUERIES))
    write(folder / "qrels" / "train.tsv", HEADER + "q1\td1\t1\n")
    write(folder / "qrels" / "test.tsv", HEADER + "q1\td1\t1\nq2\td2\t2\nq2\td3\t0\n")
    return folder


def refused(pattern, function, *args, **kwargs):
    with pytest.raises(UserError, match=pattern) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def corpus_refused(tmp_path, content, pattern, name="corpus.jsonl", **kwargs):
    refused(pattern, read_corpus, write(tmp_path / name, content), **kwargs)


# What is right.


def test_collection(folder):
    collection = read_collection(folder)
    assert collection.corpus.name == "toy"
    assert collection.corpus.documents[0] == Document("d1", "One", "first text")
    assert [document.title for document in collection.corpus.documents] == ["One", "", ""]
    assert collection.train is not None
    assert collection.train.queries == (Query("q1", "one"),)
    assert list(collection.splits) == ["test"]
    test = collection.splits["test"]
    assert [query.query_id for query in test.queries] == ["q2", "q1"]  # queries.jsonl's order
    assert test.qrels == {"q2": {"d2": 2, "d3": 0}, "q1": {"d1": 1}}
    assert test.relevant("q2") == ("d2",)


def test_all_gzip(folder):
    plain = read_collection(folder)
    for file in [*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")]:
        write(file.with_name(file.name + ".gz"), file.read_bytes())
        file.unlink()
    assert read_collection(folder) == plain


def test_seen_and_unseen_replace_their_union(folder):
    for split in ("test_seen", "dev"):
        write(folder / "qrels" / f"{split}.tsv", HEADER + "q1\td1\t1\n")
    assert sorted(read_collection(folder).splits) == ["dev", "test", "test_seen"]
    write(folder / "qrels" / "test_unseen.tsv", HEADER + "q2\td1\t1\n")
    assert sorted(read_collection(folder).splits) == ["dev", "test_seen", "test_unseen"]


def test_corpus_alone_is_a_collection(tmp_path):
    write(tmp_path / "corpus.jsonl", jsonl(*DOCUMENTS))
    collection = read_collection(tmp_path)
    assert (len(collection.corpus), collection.train, collection.splits) == (3, None, {})


def test_corpus_by_folder_and_by_file(folder):
    assert read_corpus(folder) == read_corpus(folder / "corpus.jsonl")
    other = write(folder / "wiki.jsonl.gz", jsonl(*DOCUMENTS))
    assert read_corpus(str(other)).name == "wiki"


def test_blank_lines_crlf_and_byte_order_mark(tmp_path):
    content = "\ufeff" + jsonl(*DOCUMENTS).replace("\n", "\r\n\r\n  \r\n")
    path = write(tmp_path / "toy" / "corpus.jsonl", content)
    assert len(read_corpus(path)) == 3


def test_integer_ids_become_strings(tmp_path):
    path = write(tmp_path / "corpus.jsonl", jsonl({"_id": 7, "text": "x"}))
    assert read_corpus(path).documents[0].doc_id == "7"


def test_null_text_is_no_text_and_half_a_surrogate_pair_is_replaced(tmp_path):
    path = write(
        tmp_path / "corpus.jsonl",
        r'{"_id": "a", "title": "x \ud83d y \ud83d\ude00", "text": null}',
    )
    assert read_corpus(path).documents == (Document("a", "x \ufffd y \U0001f600", ""),)


def test_trec_qrels_and_qrels_without_header(tmp_path):
    expected = {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 3}}
    trec = write(tmp_path / "a.qrels", "q1 0 d1 1\nq1 0 d2 0\n\nq2\t0\td1\t3\n")
    assert read_qrels(trec) == expected
    plain = write(tmp_path / "b.tsv.gz", "q1\td1\t1\nq1\td2\t0\nq2\td1\t3.0\nq2\td1\t3\n")
    assert read_qrels(plain) == expected


def test_query_set(folder):
    test = folder / "qrels" / "test.tsv"
    queries = read_query_set(folder / "queries.jsonl", test, {"d1", "d2", "d3"}, "mine")
    assert (queries.name, len(queries)) == ("mine", 2)


def test_skipped_documents(folder):
    empty = [{"_id": "e1"}, {"_id": "e2", "title": " ", "text": "\n"}]
    write(folder / "corpus.jsonl", jsonl(*DOCUMENTS, *empty))
    write(folder / "qrels" / "test.tsv", HEADER + "q1\td1\t1\nq1\te1\t1\nq2\te2\t1\n")
    collection = read_collection(folder)
    assert collection.corpus.skipped == ("e1", "e2")
    assert len(collection.corpus) == 3
    # q1 keeps its other document; q2 has none left.
    assert collection.splits["test"].qrels == {"q1": {"d1": 1}}
    assert collection.splits["test"].queries == (Query("q1", "one"),)
    again = read_query_set(
        folder / "queries.jsonl",
        folder / "qrels" / "test.tsv",
        collection.corpus.doc_ids,
        "test",
        skipped=collection.corpus.skipped,
    )
    assert again == collection.splits["test"]


IDS = st.text(min_size=1).filter(lambda text: text.split() == [text])
TEXTS = st.text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(IDS, st.tuples(TEXTS, TEXTS), min_size=1).map(
        lambda items: {k: v for k, v in items.items() if "".join(v).strip()}
    )
)
def test_any_documents_survive_writing_and_reading(tmp_path, items):
    corpus = Corpus("c", tuple(Document(key, *texts) for key, texts in items.items()))
    path = tmp_path / "corpus.jsonl"
    if not items:
        return
    write_corpus(corpus, path)
    first = path.read_bytes()
    again = read_corpus(path)
    assert again.documents == corpus.documents
    assert again.fingerprint == corpus.fingerprint
    write_corpus(again, path)
    assert path.read_bytes() == first


def test_twenty_thousand_documents_read_quickly(tmp_path):
    text = "word " * 120
    path = tmp_path / "corpus.jsonl"
    write_corpus(Corpus("c", tuple(Document(f"d{n}", "t", text) for n in range(20_000))), path)
    start = time.process_time()
    assert len(read_corpus(path)) == 20_000
    assert time.process_time() - start < 3  # about 0.15 s; the rest is for busy machines


# What is wrong: missing things.


def test_missing_folder_and_files(folder, tmp_path):
    refused(r"nowhere: no such folder; .*corpus\.jsonl, queries\.jsonl", read_collection,
            tmp_path / "nowhere")  # fmt: skip
    refused(r"nowhere: no such file or folder; expected corpus\.jsonl", read_corpus,
            tmp_path / "nowhere")  # fmt: skip
    refused(r"no such file", read_qrels, tmp_path / "nowhere.tsv")
    (tmp_path / "empty").mkdir()
    refused(r"empty: no corpus\.jsonl or corpus\.jsonl\.gz", read_corpus, tmp_path / "empty")
    refused(r"toy: a folder; expected a qrels file|qrels: a folder", read_qrels, folder / "qrels")
    (folder / "queries.jsonl").unlink()
    refused(r"toy: no queries\.jsonl", read_collection, folder)


def test_missing_qrels(folder):
    for file in folder.glob("qrels/*"):
        file.unlink()
    refused(r"qrels: no qrels; expected <split>\.tsv", read_collection, folder)
    (folder / "qrels").rmdir()
    refused(r"qrels: no such folder", read_collection, folder)


def test_split_twice(folder):
    write(folder / "qrels" / "test.tsv.gz", HEADER)
    refused(r"test\.tsv is the same split|test\.tsv\.gz is the same split", read_collection, folder)


# What is wrong: documents.

GOOD = '{"_id": "a", "text": "x"}\n'


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("", r"corpus\.jsonl: no documents"),
        ("\n\n", r"corpus\.jsonl: no documents"),
        (GOOD + "\n{oops}\n", r"corpus\.jsonl:3: not JSON \(.*column 2\)"),
        (GOOD + '{"_id": "b", "te', r"corpus\.jsonl:2: not JSON"),
        (GOOD + "[" * 100_000, r"corpus\.jsonl:2: (JSON that cannot be read|not JSON)"),
        (GOOD + '{"_id": %s, "text": "x"}' % ("9" * 5000), r"corpus\.jsonl:2: JSON that cannot"),
        (GOOD + "[1]\n", r"corpus\.jsonl:2: a JSON list, not an object"),
        (GOOD + '"x"\n', r"corpus\.jsonl:2: a JSON str, not an object"),
        (GOOD + '{"id": "b", "text": "x"}', r'corpus\.jsonl:2: no "_id"'),
        (GOOD + '{"_id": null, "text": "x"}', r'2: "_id" is a JSON NoneType; write it as a string'),
        (GOOD + '{"_id": true, "text": "x"}', r'2: "_id" is a JSON bool'),
        (GOOD + '{"_id": 1.5, "text": "x"}', r'2: "_id" is a JSON float'),
        (GOOD + '{"_id": "", "text": "x"}', r"2: \"_id\" '' is empty or has whitespace"),
        (GOOD + '{"_id": "b c", "text": "x"}', r"2: \"_id\" 'b c' .*whitespace.*replace it"),
        (GOOD + '{"_id": "b\\u00a0c", "text": "x"}', r"2: \"_id\" .*whitespace"),
        (GOOD + '{"_id": "\\ud800", "text": "x"}', r"2: \"_id\" .*surrogate"),
        (GOOD + '{"_id": "b", "text": ["x"]}', r'2: "text" is a JSON list'),
        (GOOD + '{"_id": "b", "title": 3, "text": "x"}', r'2: "title" is a JSON int'),
        (GOOD + "\n" + GOOD, r'corpus\.jsonl:3: document id "a" is also on line 1'),
        ('{"_id": 1, "text": "x"}\n{"_id": "1", "text": "y"}', r':2: document id "1" is also on'),
        (GOOD.encode() + b'{"_id": "b", "text": "\xe9"}', r":2: byte .*UTF-8; re-encode as UTF-8"),
        (GOOD.encode("utf-16"), r"corpus\.jsonl:1: byte 1 .*re-encode as UTF-8"),
        ('{"_id": "a"}\n{"_id": "b", "text": " "}', r"2 of 2 documents have neither .*\(a, b\)"),
    ],
)  # fmt: skip
def test_bad_documents(tmp_path, content, pattern):
    corpus_refused(tmp_path, content, pattern)


def test_strict_refuses_documents_without_text(tmp_path):
    content = GOOD + jsonl(*({"_id": f"e{n}"} for n in range(7)))
    pattern = r"7 of 8 documents have neither title nor text \(e0, e1, e2, e3, e4, \.\.\.\)"
    corpus_refused(tmp_path, content, pattern, strict=True)


def test_damaged_gzip(tmp_path):
    lines = "".join(jsonl({"_id": n, "text": f"{n * n} text"}) for n in range(5000))
    path = write(tmp_path / "corpus.jsonl.gz", lines)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(r"corpus\.jsonl\.gz:\d+: the gzip file is damaged or cut short", read_corpus, path)
    path.write_bytes(whole[:1000] + bytes(100) + whole[1100:])
    refused(r"corpus\.jsonl\.gz:\d+: ", read_corpus, path)
    path.write_bytes(GOOD.encode())
    refused(r"corpus\.jsonl\.gz:1: the gzip file is damaged", read_corpus, path)


@pytest.mark.parametrize(
    ("document", "pattern"),
    [
        (Document("a b", "", "x"), "whitespace"),
        (Document("a", " ", ""), "neither title nor text"),
        (Document("a", "", "\ud800"), "surrogate"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, document, pattern):
    path = tmp_path / "corpus.jsonl"
    refused(pattern, write_corpus, Corpus("c", (Document("z", "", "x"), document)), path)
    assert list(tmp_path.iterdir()) == []


# What is wrong: queries and qrels.


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("", r"queries\.jsonl: no queries"),
        (jsonl(*QUERIES, QUERIES[1]), r'queries\.jsonl:4: query id "q1" is also on line 2'),
        (jsonl({"_id": "q1", "text": ""}), r'queries\.jsonl:1: query "q1" has no text'),
        (jsonl({"text": "x"}), r'queries\.jsonl:1: no "_id"'),
    ],
)
def test_bad_queries(tmp_path, content, pattern):
    refused(pattern, read_queries, write(tmp_path / "queries.jsonl", content))


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("", r"test\.tsv: no judgements"),
        (HEADER, r"test\.tsv: no judgements"),
        (HEADER + "q1\td1\tyes\n", r"test\.tsv:2: score 'yes' is not a whole number"),
        (HEADER + "q1\td1\t0.5\n", r"test\.tsv:2: score '0\.5'"),
        (HEADER + "q1\td1\tnan\n", r"test\.tsv:2: score 'nan'"),
        (HEADER + "q1\td1\tinf\n", r"test\.tsv:2: score 'inf'"),
        (HEADER + "q1\td1\n", r"test\.tsv:2: 2 columns; expected"),
        (HEADER + HEADER, r"test\.tsv:2: score 'score'"),
        (HEADER + "q1\td1\t1\nq1\td1\t2\n", r"test\.tsv:3: .*score 1 on an earlier line and 2"),
        (HEADER + "q1\td1\t1\nq9\td1\t1\n", r'test\.tsv:3: query "q9" is not in .*queries\.jsonl'),
        (HEADER + "\nq1\td9\t1\n", r'test\.tsv:3: document "d9" is not in the corpus'),
        (HEADER + "q8\td1\t1\nq9\td1\t1\n", r"test\.tsv: names none of the 3 queries of"),
        (HEADER + "q1\td1\t0\n", r"test\.tsv: no query has a relevant document"),
        (HEADER.encode() + b"q\xff\td1\t1\n", r"test\.tsv:2: byte 2 .*re-encode as UTF-8"),
    ],
)
def test_bad_qrels(folder, content, pattern):
    path = write(folder / "qrels" / "test.tsv", content)
    refused(pattern, read_collection, folder)
    refused(pattern, read_query_set, folder / "queries.jsonl", path, {"d1", "d2", "d3"}, "mine")


def test_messages_begin_with_the_file(folder):
    path = write(folder / "corpus.jsonl", "[]")
    refused("^" + re.escape(f"{path}:1: "), read_collection, folder)
