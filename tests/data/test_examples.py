import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.corpus import Corpus, Document
from gr_jax.data import document_chunks, write_examples
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
    path = tmp_path_factory.getbasetemp() / "examples.tsv"
    docid_map = docids(8)
    pairs = [(text, row) for row, text in enumerate(texts)]
    count = write_examples(path, docid_map, iter(pairs))
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
    write_examples(tmp_path / "x.tsv", docid_map, [("one", 0), ("two", 1)])
    assert (tmp_path / "x.tsv").read_text() == "one\t3 6 1\ntwo\t3 1\n"
    assert docid_map.tokens.tolist() == [[3, 6, 1], [3, 1, 0]]


def test_a_failing_source_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("old")

    def source():
        yield "new", 0
        raise UserError("no more")

    with pytest.raises(UserError):
        write_examples(path, docids(1), source())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.tsv"]


@pytest.mark.parametrize("module", ["data", "queries", "docids"])
def test_import_needs_no_tensorflow(module):
    script = (
        f"import gr_jax.{module}, sys\n"
        "heavy = {'tensorflow', 'tensorflow_text', 'seqio', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
