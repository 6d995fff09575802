"""The embedded collection, as this installation gives it."""

import os
import subprocess
import sys

import pytest

from gr_jax.corpus import python_docs
from gr_jax.corpus._docstrings import MAX_WORDS
from gr_jax.corpus._python_questions import QUESTIONS


@pytest.fixture(scope="module")
def collection():
    return python_docs()


def test_size_and_shape(collection):
    corpus = collection.corpus
    assert 3000 <= len(corpus) < 6000
    assert len(corpus.doc_ids) == len(corpus)
    assert collection.train is None
    assert corpus.skipped == ()
    for document in corpus.documents:
        assert document.title == document.doc_id
        assert document.doc_id.split() == [document.doc_id]
        assert 3 <= len(document.text.split()) <= MAX_WORDS


def test_no_private_names_and_no_tests(collection):
    for document in collection.corpus.documents:
        parts = document.doc_id.split(".")
        assert not any(part.startswith("_") for part in parts), document.doc_id
        assert not {"tests", "conftest"} & set(parts), document.doc_id


WELL_KNOWN = """
    len sorted str.split dict.get list.append print os.path.join pathlib.Path.exists math.sqrt
    itertools.chain functools.lru_cache functools.reduce collections.Counter collections.deque
    re.sub re.Match.group json.dumps time.sleep random.shuffle datetime.date.strftime os.listdir
    sys.exit subprocess.run threading.Lock threading.Thread multiprocessing.Pool asyncio.gather
    concurrent.futures.ThreadPoolExecutor csv.reader pickle.dump io.StringIO decimal.Decimal
    numpy.sort numpy.concatenate numpy.array numpy.where numpy.linalg.norm numpy.fft.fft
    numpy.ndarray.reshape jax.numpy.where jax.numpy.sin jax.numpy.linalg.norm jax.numpy.fft.fft
    scipy.optimize.minimize scipy.sparse.csr_matrix scipy.sparse.csr_array.toarray scipy.stats.norm
    scipy.signal.butter scipy.ndimage.gaussian_filter scipy.integrate.quad scipy.linalg.svd
    scipy.interpolate.CubicSpline scipy.special.logsumexp scipy.spatial.KDTree.query
"""


def test_well_known_names_are_there(collection):
    assert set(WELL_KNOWN.split()) - collection.corpus.doc_ids == set()


def test_aliases_and_copies_are_one_document(collection):
    ids = collection.corpus.doc_ids
    assert not {"numpy.concat", "posixpath.join", "ntpath.join", "random.Random.shuffle"} & ids


def test_texts_are_prose(collection):
    texts = {document.doc_id: document.text for document in collection.corpus.documents}
    assert texts["len"] == "Return the number of items in a container."
    assert texts["numpy.sort"].startswith("Return a sorted copy of an array. Parameters: a: Array")
    marked = [i for i, text in texts.items() if ":func:" in text or ">>> " in text]
    assert len(marked) < len(texts) / 100


def test_questions(collection):
    assert list(collection.splits) == ["questions"]
    questions = collection.splits["questions"]
    assert questions.name == "questions"
    assert len(questions) >= 200
    assert len({query.text for query in questions.queries}) == len(questions)
    assert questions.queries[0].query_id == "q001"
    for query in questions.queries:
        assert 4 <= len(query.text.split()) <= 16, query.text
        assert set(questions.relevant(query.query_id)) <= collection.corpus.doc_ids


@pytest.mark.skipif(sys.version_info[:2] != (3, 12), reason="names of this Python's library")
def test_every_answer_exists(collection):
    names = {name for _, names in QUESTIONS for name in names}
    assert names - collection.corpus.doc_ids == set()
    assert all(len(set(names)) == len(names) for _, names in QUESTIONS)


def test_what_a_notebook_adds_is_not_documentation(collection, monkeypatch):
    def display(value):
        """Shows a value, as in a notebook."""

    class Shell:
        """The shell of a notebook, as a class."""

        def ask(self):
            """Asks something in the notebook."""

    for name, value in (("display", display), ("Shell", Shell), ("input", Shell().ask)):
        monkeypatch.setattr("builtins." + name, value, raising=False)
    monkeypatch.setattr(sys, "excepthook", display)
    assert python_docs().corpus.fingerprint == collection.corpus.fingerprint


def test_same_documents_from_anywhere_and_nothing_imported(collection, tmp_path):
    script = (
        "import sys; from gr_jax.corpus import python_docs\n"
        "before = set(sys.modules)\n"
        "collection = python_docs()\n"
        "print(collection.corpus.fingerprint)\n"
        "late = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(late & {'numpy', 'scipy', 'jax', 'jaxlib', 'tensorflow'}))\n"
        "print(sorted({'scipy', 'jax', 'tensorflow'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for seed, cwd in (("1", tmp_path), ("2", "/")):
        result = subprocess.run(
            [sys.executable, "-c", script],
            cwd=cwd,
            env={**environment, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.split("\n")[:3] == [collection.corpus.fingerprint, "[]", "[]"]
