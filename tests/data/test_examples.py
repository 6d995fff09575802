import math
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.corpus import Corpus, Document
from gr_jax.data import document_chunks, example_files, write_examples
from gr_jax.docids import docid_map_from_tokens
from gr_jax.errors import UserError

quick = settings(deadline=None, derandomize=True, max_examples=100)


def corpus_of(*texts: str, title: str = "") -> Corpus:
    return Corpus("c", tuple(Document(f"d{i}", title, t) for i, t in enumerate(texts)))


# --- chunks


@quick
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), words=st.integers(1, 25))
def test_chunks_cover_every_word_in_order(lengths, words):
    texts = [" ".join(f"w{i}x{j}" for j in range(n)) for i, n in enumerate(lengths)]
    by_row = {row: [] for row in range(len(texts))}
    for chunk, row in document_chunks(corpus_of(*texts), words=words):
        by_row[row].append(chunk.split())
    for row, chunks in by_row.items():
        parts = texts[row].split()
        starts = [parts.index(chunk[0]) for chunk in chunks if chunk]
        assert starts == sorted(set(starts))  # forwards, none twice
        seen = set()
        for start, chunk in zip(starts, chunks, strict=bool(parts)):
            assert chunk == parts[start : start + words]
            assert len(chunk) == min(words, len(parts))  # none is a stub
            seen.update(chunk)
        assert seen == set(parts)
        if len(parts) > words:
            assert chunks[-1][-1] == parts[-1]
            assert len(chunks) <= math.ceil((len(parts) - words) / max(words // 2, 1)) + 1


def test_chunks_hold_title_and_text():
    chunks = list(document_chunks(corpus_of("one two", title="Name"), words=48))
    assert chunks == [("Name. one two", 0)]
    assert list(document_chunks(corpus_of("a b c d e f g"), words=4)) == [
        ("a b c d", 0),
        ("c d e f", 0),
        ("d e f g", 0),
    ]


# --- files


def docids(n: int):
    return docid_map_from_tokens([f"d{i}" for i in range(n)], [(i, 1) for i in range(n)])


@quick
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8))
def test_a_line_for_each_text(tmp_path_factory, texts):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "examples-00000-of-00001.tsv"
    docid_map = docids(8)
    pairs = [(text, row) for row, text in enumerate(texts)]
    count = write_examples(folder, "examples", docid_map, iter(pairs))
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    kept = [(" ".join(text.split()), row) for text, row in pairs if text.split()]
    assert count == len(kept) == len(lines)
    for line, (text, row) in zip(lines, kept, strict=True):
        inputs, targets = line.split("\t")  # white space in a text never looks like a separator
        assert inputs == text
        assert [int(t) for t in targets.split(" ")] == docid_map.tokens[row].tolist()


def test_shorter_docids_are_written_without_padding(tmp_path):
    docid_map = docid_map_from_tokens(["a", "b"], [(1, 2), (1,)])  # a prefix: the end is a token
    write_examples(tmp_path, "x", docid_map, [("one", 0), ("two", 1)])
    assert (tmp_path / "x-00000-of-00001.tsv").read_text() == "one\t3 6 1\ntwo\t3 1\n"
    assert docid_map.tokens.tolist() == [[3, 6, 1], [3, 1, 0]]


def test_a_failing_source_leaves_the_old_files(tmp_path):
    write_examples(tmp_path, "x", docids(1), [("old", 0)] * 3, per_file=2)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(before) == 2

    def source():
        yield from [("new", 0)] * 5
        raise UserError("no more")

    with pytest.raises(UserError):
        write_examples(tmp_path, "x", docids(1), source(), per_file=2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


@settings(quick, max_examples=25)  # each waits for the disk
@given(examples=st.integers(0, 13), per_file=st.integers(1, 5))
def test_files_hold_the_examples_in_order(tmp_path_factory, examples, per_file):
    folder = tmp_path_factory.getbasetemp() / "shards"
    pairs = [(f"text {i}", i) for i in range(examples)]
    write_examples(folder, "x-other", docids(13), [("another task's", 0)] * 4, per_file=2)
    # the files of a longer task, and what a killed process left, are gone afterwards
    write_examples(folder, "x", docids(13), [("old", 0)] * 12, per_file=1)
    (folder / "x.part-7").write_text("half")
    assert write_examples(folder, "x", docids(13), pairs, per_file=per_file) == examples
    files = example_files(folder, "x")
    lines = [path.read_text().splitlines() for path in files]
    assert [line.split("\t")[0] for of_file in lines for line in of_file] == [t for t, _ in pairs]
    assert all(len(of_file) == per_file for of_file in lines[:-1])
    assert len(files) == max(math.ceil(examples / per_file), 1)
    assert [path.name for path in files] == [
        f"x-{i:05}-of-{len(files):05}.tsv" for i in range(len(files))
    ]
    others = {path.name for path in folder.iterdir()} - {path.name for path in files}
    assert others == {"x-other-00000-of-00002.tsv", "x-other-00001-of-00002.tsv"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "x-00001-of-00003.tsv").unlink(), "some are missing"),
        (lambda f: (f / "x-00002-of-00003.tsv").unlink(), "is not one of 2 files of x"),
        (lambda f: (f / "x-00000-of-00001.tsv").write_text("more"), "is not one of 4 files of x"),
        (lambda f: [path.unlink() for path in f.iterdir()], "no examples of x"),
    ],
)
def test_missing_files_are_refused_in_one_line(tmp_path, damage, message):
    write_examples(tmp_path, "x", docids(1), [("text", 0)] * 3, per_file=1)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        example_files(tmp_path, "x")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_writing_holds_no_examples(tmp_path):
    def source():
        for i in range(10_000):
            yield f"{i} " + "text " * 60, 0

    tracemalloc.start()
    try:
        write_examples(tmp_path, "x", docids(1), source(), per_file=4_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    written = sum(path.stat().st_size for path in example_files(tmp_path, "x"))
    assert written > 3e6 and peak < written / 10


@pytest.mark.parametrize("module", ["data", "queries", "docids"])
def test_import_needs_no_tensorflow(module):
    script = (
        f"import gr_jax.{module}, sys\n"
        "heavy = {'tensorflow', 'tensorflow_text', 'seqio', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
