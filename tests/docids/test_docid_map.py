import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gr_jax.docids import (
    EOS_ID,
    PAD_ID,
    DocidMap,
    DocidVocabulary,
    docid_map_from_tokens,
)
from gr_jax.errors import UserError

quick = settings(deadline=None, derandomize=True, max_examples=150)


@st.composite
def docid_lists(draw, most: int = 12):
    """Docids of 1-3 codes below 3: prefixes and duplicates are common."""
    docid = st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)
    return draw(st.lists(docid, min_size=1, max_size=most))


def make(docids, **provenance) -> DocidMap:
    return docid_map_from_tokens([f"d{i}" for i in range(len(docids))], docids, **provenance)


def example() -> DocidMap:
    return make([(0, 1), (1,), (2, 2)], method="by hand")


# --- validation


@pytest.mark.parametrize(
    ("codes", "sizes"),
    [
        ([[0, 1]], (2, 2)),  # one row for two documents
        ([[0], [1]], (2, 2)),  # one column for two levels
        ([[0, 2], [1, 1]], (2, 2)),  # a code as large as its level
        ([[-1, 1], [1, 1]], (2, 2)),  # no code
        ([[-1, -1], [1, 1]], (2, 2)),
        ([[0, -2], [1, 1]], (2, 2)),  # only -1 marks the end
        ([[-7, 0], [1, 1]], (2, 2)),
        ([[2**32, 0], [1, 1]], (2, 2)),  # would wrap to 0
        ([[0.5, 0], [1, 1]], (2, 2)),
        ([[np.nan, 0], [1, 1]], (2, 2)),
        ([0, 1], (2,)),
        (np.zeros((2, 0)), ()),
    ],
)
def test_wrong_codes_are_refused(codes, sizes):
    with pytest.raises(ValueError):
        DocidMap(("a", "b"), np.array(codes), sizes)


def test_holes_and_twice_named_documents_are_refused():
    with pytest.raises(ValueError, match="hole"):
        DocidMap(("a",), np.array([[0, -1, 1]]), (2, 2, 2))
    with pytest.raises(ValueError, match="two docids"):
        DocidMap(("a", "a"), np.array([[0], [1]]), (2,))


def test_tokens_need_documents_and_codes():
    for ids, docids in [([], []), (["a"], [()]), (["a", "b"], [(1,), ()])]:
        with pytest.raises(ValueError):
            docid_map_from_tokens(ids, docids)
    with pytest.raises(ValueError):
        docid_map_from_tokens(["a"], [(1,), (2,)])


def test_a_map_does_not_change_with_the_array_it_was_made_of():
    codes = np.array([[0, 1], [1, 0]], np.int32)
    docid_map = DocidMap(("a", "b"), codes, (2, 2))
    codes[0, 0] = 1  # the caller's array stays writable
    assert docid_map.codes[0, 0] == 0
    with pytest.raises(ValueError):
        docid_map.codes[0, 0] = 1


# --- properties against brute force


@quick
@given(docid_lists())
def test_order_uniqueness_and_prefixes_against_brute_force(docids):
    docid_map = make(docids)
    # tuples compare as docids do: a prefix first
    order = sorted(range(len(docids)), key=lambda i: (docids[i], i))
    assert docid_map.sorted_order.tolist() == order
    assert docid_map.unique == (len(set(docids)) == len(docids))
    prefix_free = not any(a != b and b[: len(a)] == a for a in docids for b in docids)
    assert docid_map.prefix_free == prefix_free
    assert docid_map.vocabulary.eos == (not prefix_free)
    assert docid_map.index_of == {f"d{i}": i for i in range(len(docids))}
    for row, docid in enumerate(docids):
        assert docid_map.docid_string(row) == "-".join(map(str, docid))


@quick
@given(docid_lists())
def test_tokens_spell_each_docid(docids):
    docid_map = make(docids)
    vocabulary = docid_map.vocabulary
    assert vocabulary.size == 2 + sum(vocabulary.level_sizes)
    assert docid_map.tokens.shape == (len(docids), vocabulary.max_tokens)
    assert docid_map.tokens.dtype == np.int32
    for docid, tokens in zip(docids, docid_map.tokens.tolist(), strict=True):
        spelled = [2 + sum(vocabulary.level_sizes[:i]) + c for i, c in enumerate(docid)]
        spelled += [EOS_ID] * vocabulary.eos
        assert tokens == spelled + [PAD_ID] * (len(tokens) - len(spelled))
    np.testing.assert_array_equal(vocabulary.decode(docid_map.tokens), docid_map.codes)
    # every (level, code) has a token of its own
    assert len(set(tuple(t) for t in docid_map.tokens.tolist())) == len(set(docids))


@pytest.mark.parametrize("token", [4, 7, 100])
def test_a_token_of_another_level_is_refused(token):
    vocabulary = DocidVocabulary((2, 3))  # level 0: 2, 3; level 1: 4, 5, 6
    with pytest.raises(ValueError, match=str(token)):
        vocabulary.decode(np.array([[2, 4], [token, 4]]))


def test_a_token_of_an_earlier_level_is_refused():
    with pytest.raises(ValueError, match="3"):
        DocidVocabulary((2, 3)).decode(np.array([[2, 3]]))


# --- fingerprint


@quick
@given(docid_lists(), docid_lists())
def test_fingerprint_is_that_of_the_content(docids, others):
    docid_map, other = make(docids), make(others, method="another")
    assert (docid_map.fingerprint == other.fingerprint) == (docids == others)


def test_fingerprint_changes_with_everything_but_provenance():
    base = example()
    changes = [
        {"doc_ids": ("d0", "d2", "d1")},
        {"doc_ids": ("d0", "d1", "d2 ")},
        {"doc_ids": ("d0", 'd1", "d', "2")},
        {"codes": np.array([[0, 1], [1, 0], [2, 2]])},
        {"codes": np.array([[0, 1], [1, -1], [2, 1]])},
        {"level_sizes": (4, 3)},
        {"level_sizes": (3, 4)},
    ]
    fingerprints = {dataclasses.replace(base, **change).fingerprint for change in changes}
    assert len(fingerprints | {base.fingerprint}) == len(changes) + 1
    assert dataclasses.replace(base, provenance={"x": 1}).fingerprint == base.fingerprint


def test_fingerprint_is_stable_across_versions():
    # stored in every checkpoint: a change here makes all of them unusable
    assert example().fingerprint == FINGERPRINT


FINGERPRINT = "7d356ad5ec3b617d6c6d4d588c3ed7611f76ccb93a6d2be8cc25d3da3468401b"


# --- files

ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(quick, max_examples=60)
@given(data=st.data(), doc_ids=st.lists(ids, min_size=1, max_size=8, unique=True))
def test_save_and_load(tmp_path_factory, data, doc_ids):
    docids = data.draw(docid_lists(len(doc_ids)))
    assume(len(docids) == len(doc_ids))
    provenance = {"note": data.draw(ids), "seed": 3, "nested": {"x": [1.5, None]}}
    docid_map = docid_map_from_tokens(doc_ids, docids, **provenance)
    folder = tmp_path_factory.getbasetemp() / "round_trip"
    docid_map.save(folder)
    again = DocidMap.load(folder)
    assert again.doc_ids == docid_map.doc_ids
    assert again.level_sizes == docid_map.level_sizes
    assert again.fingerprint == docid_map.fingerprint
    assert again.provenance == provenance
    assert again.codes.dtype == np.int32
    np.testing.assert_array_equal(again.codes, docid_map.codes)


def _cut(path: Path):
    path.write_bytes(path.read_bytes()[:-3])


def _edit(path: Path, old: str, new: str):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def _header(key: str, value):
    def damage(folder: Path):
        header = json.loads((folder / "docid_map.json").read_text())
        if value is None:
            del header[key]
        else:
            header[key] = value
        (folder / "docid_map.json").write_text(json.dumps(header))

    return damage


DAMAGE = {
    "no folder": shutil.rmtree,
    "no header": lambda f: (f / "docid_map.json").unlink(),
    "no ids": lambda f: (f / "doc_ids.json").unlink(),
    "no codes": lambda f: (f / "codes.npy").unlink(),
    "header cut": lambda f: _cut(f / "docid_map.json"),
    "ids cut": lambda f: _cut(f / "doc_ids.json"),
    "codes cut": lambda f: _cut(f / "codes.npy"),
    "codes empty": lambda f: (f / "codes.npy").write_bytes(b""),
    "codes pickled": lambda f: np.save(f / "codes.npy", np.array([{}]), allow_pickle=True),
    "codes of text": lambda f: np.save(f / "codes.npy", np.array([["a", "b"]] * 3)),
    "header a list": lambda f: (f / "docid_map.json").write_text("[1]"),
    "header a number": lambda f: (f / "docid_map.json").write_text("1"),
    "header not UTF-8": lambda f: (f / "docid_map.json").write_bytes(b'{"\xff": 1}'),
    "no fingerprint": _header("fingerprint", None),
    "no sizes": _header("level_sizes", None),
    "sizes a number": _header("level_sizes", 3),
    "other sizes": _header("level_sizes", [3, 4]),
    "other fingerprint": _header("fingerprint", "0" * 64),
    "fingerprint a number": _header("fingerprint", 7),
    "ids a number": lambda f: (f / "doc_ids.json").write_text("7"),
    "ids of lists": lambda f: (f / "doc_ids.json").write_text("[[1], [2], [3]]"),
    "an id changed": lambda f: _edit(f / "doc_ids.json", "d1", "dI"),
    "an id twice": lambda f: _edit(f / "doc_ids.json", "d1", "d0"),
    "a code changed": lambda f: np.save(f / "codes.npy", np.array([[0, 1], [1, -1], [2, 0]])),
    "a row less": lambda f: np.save(f / "codes.npy", np.array([[0, 1], [1, -1]])),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_maps_are_refused_in_one_line(tmp_path, damage):
    folder = tmp_path / "docids"
    example().save(folder)
    damage(folder)
    with pytest.raises(UserError) as caught:
        DocidMap.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_map(tmp_path):
    old = example()
    old.save(tmp_path / "docids")
    new = make([(5,), (6,), (7,)], path=Path("not JSON"))
    with pytest.raises(TypeError):
        new.save(tmp_path / "docids")
    assert DocidMap.load(tmp_path / "docids").fingerprint == old.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["docids"]


_KILLED = """
import os, pathlib, signal, sys
import numpy as np
from gr_jax.docids import docid_map_from_tokens
write, left = pathlib.Path.write_text, int(sys.argv[2])
def write_text(self, *args, **kwargs):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return write(self, *args, **kwargs)
pathlib.Path.write_text = write_text
docid_map_from_tokens(["x"], [(1, 2)]).save(pathlib.Path(sys.argv[1]))
"""


def test_a_killed_save_leaves_the_old_map(tmp_path):
    old = example()
    old.save(tmp_path / "docids")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for writes in ("0", "1"):
        killed = subprocess.run(
            [sys.executable, "-c", _KILLED, tmp_path / "docids", writes],
            env=environment,
            timeout=60,
        )
        assert killed.returncode == -signal.SIGKILL
        assert DocidMap.load(tmp_path / "docids").fingerprint == old.fingerprint
    assert len(list(tmp_path.iterdir())) == 2  # one leftover: the second run removed the first's
    old.save(tmp_path / "docids")
    assert [p.name for p in tmp_path.iterdir()] == ["docids"]
