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


@pytest.mark.parametrize("code", [-1, -2])
def test_a_frozen_array_is_taken_as_it_is_and_checked_all_the_same(code):
    codes = np.array([[0, 1], [1, 0]], np.int32)
    codes.flags.writeable = False
    assert DocidMap(("a", "b"), codes, (2, 2)).codes is codes
    view = codes[:1]  # its owner could be made writable again
    assert DocidMap(("a",), view, (2, 2)).codes is not view
    wrong = np.array([[0, 1], [code, 0]], np.int32)
    wrong.flags.writeable = False
    with pytest.raises(ValueError):
        DocidMap(("a", "b"), wrong, (2, 2))


def test_holes_and_twice_named_documents_are_refused():
    with pytest.raises(ValueError, match="hole"):
        DocidMap(("a",), np.array([[0, -1, 1]]), (2, 2, 2))
    with pytest.raises(ValueError, match="two docids: 'a'"):
        DocidMap(("b", "a", "a"), np.array([[0], [1], [1]]), (2,))


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


def check_order(docid_map: DocidMap) -> None:
    """Everything that rests on the sorted order, against tuples, which compare as docids do."""
    docids = [tuple(c for c in row if c >= 0) for row in docid_map.codes.tolist()]
    order = sorted(range(len(docids)), key=lambda i: (docids[i], i))
    assert docid_map.sorted_order.tolist() == order
    assert docid_map.lengths.tolist() == list(map(len, docids))
    shared = [0] * len(order)
    for place in range(1, len(order)):
        one, other = docids[order[place - 1]], docids[order[place]]
        equal = [a == b for a, b in zip(one, other, strict=False)]
        shared[place] = equal.index(False) if False in equal else len(equal)
        if one == other:
            shared[place] = len(docid_map.level_sizes)
    assert docid_map.shared_levels.tolist() == shared
    assert docid_map.unique == (len(set(docids)) == len(docids))
    pairs = ((a, b) for a in set(docids) for b in set(docids))
    assert docid_map.prefix_free == (not any(a != b and b[: len(a)] == a for a, b in pairs))


WIDE = (2**31, 3, 256, 2**20, 70_000, 2**31, 5)  # three words of 64 bits


@st.composite
def wide_maps(draw, prefix: str = "d"):
    """Docids over large levels: few values, so that ties and prefixes are common."""
    values = [draw(st.lists(st.integers(0, s - 1), min_size=1, max_size=2)) for s in WIDE]
    values = [[*v, s - 1] for v, s in zip(values, WIDE, strict=True)]
    picks = st.lists(st.integers(0, 2), min_size=1, max_size=len(WIDE))
    lists = draw(st.lists(picks, min_size=1, max_size=20))
    lists += draw(st.lists(st.sampled_from(lists), max_size=5))
    docids = [[v[i % len(v)] for i, v in zip(d, values, strict=False)] for d in lists]
    codes = np.full((len(docids), len(WIDE)), -1, np.int64)
    for row, docid in zip(codes, docids, strict=True):
        row[: len(docid)] = docid
    return DocidMap(tuple(f"{prefix}{i}" for i in range(len(docids))), codes, WIDE)


@quick
@given(wide_maps())
def test_order_over_large_levels(docid_map):
    check_order(docid_map)


@quick
@given(docid_lists())
def test_order_over_small_levels(docids):
    check_order(make(docids))


def test_an_empty_map_has_an_order():
    docid_map = DocidMap((), np.zeros((0, 2), np.int32), (4, 4))
    check_order(docid_map)
    assert docid_map.tokens.shape == (0, 2) and len(docid_map.fingerprint) == 64


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


@quick
@given(docid_lists(), st.booleans(), st.lists(st.integers(2, 9), min_size=3, max_size=3))
def test_levels_may_share_tokens(docids, eos, first):
    docid_map = make(docids)
    sizes = docid_map.level_sizes
    vocabulary = DocidVocabulary(sizes, eos, tuple(first[: len(sizes)]))
    assert vocabulary.size == max(f + s for f, s in zip(first, sizes, strict=False))
    assert vocabulary.offsets.tolist() == first[: len(sizes)]
    tokens = vocabulary.encode(docid_map.codes)
    for docid, row in zip(docids, tokens.tolist(), strict=True):
        spelled = [first[i] + c for i, c in enumerate(docid)] + [EOS_ID] * eos
        assert row == spelled + [PAD_ID] * (vocabulary.max_tokens - len(spelled))
    np.testing.assert_array_equal(vocabulary.decode(tokens), docid_map.codes)


def test_codes_can_be_tokens_of_a_text_vocabulary():
    vocabulary = DocidVocabulary((100, 100), eos=True, first_tokens=(0, 0))
    codes = np.array([[2, 99], [50, -1]])
    assert vocabulary.encode(codes).tolist() == [[2, 99, EOS_ID], [50, EOS_ID, PAD_ID]]
    np.testing.assert_array_equal(vocabulary.decode(vocabulary.encode(codes)), codes)
    assert vocabulary.size == 100
    for illegal in (PAD_ID, EOS_ID):
        with pytest.raises(ValueError, match=f"code {illegal} of level 1"):
            vocabulary.encode(np.array([[2, 3], [4, illegal]]))
    with pytest.raises(ValueError, match="100"):
        vocabulary.decode(np.array([[2, 100]]))


@pytest.mark.parametrize("first_tokens", [(), (2,), (2, 2, 2), (2, -1)])
def test_first_tokens_are_one_per_level(first_tokens):
    with pytest.raises(ValueError, match="first token"):
        DocidVocabulary((4, 4), first_tokens=first_tokens)


def test_vocabularies_compare_by_value():
    one, other = (DocidVocabulary((4, 4), first_tokens=(2, 2)) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != DocidVocabulary((4, 4)) and one.offsets.tolist() != [2, 6]


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


# --- documents that come and go


@quick
@given(wide_maps(), wide_maps(prefix="e"), st.data())
def test_changed_maps_are_what_new_maps_would_be(one, two, data):
    codes = np.concatenate([one.codes, two.codes])
    doc_ids = one.doc_ids + two.doc_ids
    eos = one.vocabulary.eos
    if not eos and not DocidMap(doc_ids, codes, WIDE).prefix_free:
        with pytest.raises(UserError, match="would be a prefix of"):
            one.extended(two.doc_ids, two.codes)
        return
    both = one.extended(two.doc_ids, two.codes)
    assert "sorted_order" in vars(both), "sorted again"
    assert both.fingerprint == DocidMap(doc_ids, codes, WIDE, eos=eos).fingerprint
    check_order(both)
    keep = data.draw(st.lists(st.booleans(), min_size=len(both), max_size=len(both)))
    left = both.without([d for d, k in zip(doc_ids, keep, strict=True) if not k])
    assert "sorted_order" in vars(left), "sorted again"
    kept = tuple(d for d, k in zip(doc_ids, keep, strict=True) if k)
    assert left.fingerprint == DocidMap(kept, codes[keep], WIDE, eos=eos).fingerprint
    check_order(left)
    # what a model was trained on is spelled as it was
    assert left.vocabulary == both.vocabulary == one.vocabulary


@quick
@given(docid_lists(), docid_lists())
def test_levels_may_grow_behind_the_tokens_that_are_there(docids, more):
    docid_map = make([*docids, (0, 0), (0,)])  # with an end token
    levels = len(docid_map.level_sizes)
    sizes = (*docid_map.level_sizes[:-1], docid_map.level_sizes[-1] + 2, *(3,) * (4 - levels))
    codes = np.full((len(more), 4), -1)
    for row, docid in zip(codes, more, strict=True):
        row[: len(docid)] = docid
    assume((codes < np.array(sizes)).all())
    grown = docid_map.extended([f"e{i}" for i in range(len(more))], codes, sizes)
    assert grown.level_sizes == sizes
    check_order(grown)
    old = grown.codes[: len(docid_map)]
    np.testing.assert_array_equal(old[:, :levels], docid_map.codes)
    assert (old[:, levels:] == -1).all()
    width = docid_map.tokens.shape[1]
    np.testing.assert_array_equal(grown.tokens[: len(docid_map), :width], docid_map.tokens)


def test_the_tokens_stay_whoever_comes_and_goes(tmp_path):
    """A model that knows an end token keeps it, and one that does not never gets one."""
    with_end = make([(0, 0), (0, 1), (0,)]).without(["d2"])
    assert with_end.prefix_free and with_end.vocabulary.eos
    with_end.save(tmp_path / "docids")
    again = DocidMap.load(tmp_path / "docids")
    assert again.vocabulary == with_end.vocabulary and again.fingerprint == with_end.fingerprint
    # what a checkpoint compares: the same docids, spelled otherwise, are others
    plain = DocidMap(with_end.doc_ids, with_end.codes, with_end.level_sizes)
    assert not plain.vocabulary.eos and plain.fingerprint != with_end.fingerprint
    with pytest.raises(UserError, match="docid 0-1 of 'd1' would be a prefix of 0-1-0 of 'new'"):
        plain.extended(["new"], np.array([[0, 1, 0]]), (1, 2, 2))
    with pytest.raises(UserError, match=r"docid 0 of 'new' would be a prefix of 0-0 of 'd0'.*eos"):
        plain.extended(["new"], np.array([[0, -1]]))
    assert with_end.extended(["new"], np.array([[0, -1]])).vocabulary == with_end.vocabulary
    with pytest.raises(ValueError, match="eos must be True"):
        dataclasses.replace(make([(0, 0), (0,)]), eos=False).tokens  # noqa: B018


@pytest.mark.parametrize("sizes", [(4, 3), (4, 4), (4, 3, 3)])
def test_a_level_with_others_behind_it_cannot_grow(sizes):
    with pytest.raises(UserError, match=r"level 0 cannot grow from 3 to 4 codes: .* train on it"):
        example().extended(["new"], np.full((1, len(sizes)), 1), sizes)


def test_first_tokens_belong_to_the_map(tmp_path):
    shared = DocidMap(("a", "b"), np.array([[0, 1], [1, 0]]), (2, 2), first_tokens=(5, 5))
    assert shared.tokens.tolist() == [[5, 6], [6, 5]]
    shared.save(tmp_path / "docids")
    changed = DocidMap.load(tmp_path / "docids").without(["a"])
    assert changed.first_tokens == (5, 5) and changed.tokens.tolist() == [[6, 5]]
    plain = DocidMap(shared.doc_ids, shared.codes, (2, 2))
    assert DocidMap.load(tmp_path / "docids").fingerprint == shared.fingerprint != plain.fingerprint
    with pytest.raises(UserError, match="first_tokens"):
        shared.extended(["c"], np.array([[1, 2]]), (2, 3))


@pytest.mark.parametrize("eos", [False, True])
def test_older_files_have_the_tokens_that_their_codes_give(tmp_path, eos):
    docid_map = make([(0, 1), (1,), (0,) if eos else (2,)])
    docid_map.save(tmp_path / "docids")
    for key in ("eos", "first_tokens"):
        _header(key, None)(tmp_path / "docids")
    again = DocidMap.load(tmp_path / "docids")
    assert again.vocabulary == docid_map.vocabulary and again.vocabulary.eos == eos


def test_wrong_changes_are_refused():
    docid_map = example()
    codes = np.array([[0, 0], [1, 1]])
    with pytest.raises(UserError, match=r"'d1'.*leave it out"):
        docid_map.extended(["new", "d1"], codes)
    with pytest.raises(UserError, match="'new'"):
        docid_map.extended(["new", "new"], codes)
    with pytest.raises(UserError, match=r"larger than its level; .* level_sizes"):
        docid_map.extended(["new"], np.array([[3, 0]]))
    with pytest.raises(UserError, match="codes"):
        docid_map.extended(["new"], codes)
    for sizes in ((2, 3), (3,), (4, 2)):
        with pytest.raises(UserError, match="shrink"):
            docid_map.extended(["new"], np.array([[0, 0]]), sizes)
    with pytest.raises(UserError, match=r"'unknown'.*leave it out"):
        docid_map.without(["d1", "unknown"])
    # a name is not a list of letters
    with pytest.raises(UserError, match=r"not 'd1': write \['d1'\]"):
        docid_map.without("d1")
    with pytest.raises(UserError, match=r"not 'ab': write \['ab'\]"):
        docid_map.extended("ab", codes)


def test_changes_of_nothing_and_of_everything():
    docid_map = example()
    for same in (docid_map.without([]), docid_map.extended([], np.zeros((0, 2), np.int32))):
        assert same.fingerprint == docid_map.fingerprint
        check_order(same)
    nothing = docid_map.without(docid_map.doc_ids)
    assert len(nothing) == 0 and nothing.level_sizes == docid_map.level_sizes
    again = nothing.extended(docid_map.doc_ids, docid_map.codes)
    assert again.fingerprint == docid_map.fingerprint
    check_order(again)
    assert len(docid_map.without(["d1", "d1"])) == 2


def test_changes_are_on_record(tmp_path):
    docid_map = example()
    bigger = docid_map.extended(["new", "newer"], np.array([[0, 0], [2, 1]]))
    changed = bigger.without(["d0"])
    changes = [
        {"extended": 2, "of": docid_map.fingerprint},
        {"without": 1, "of": bigger.fingerprint},
    ]
    assert changed.provenance == {"method": "by hand", "changes": changes}
    assert docid_map.provenance == {"method": "by hand"}
    assert bigger.provenance["changes"] == changes[:1]
    changed.save(tmp_path / "docids")
    assert DocidMap.load(tmp_path / "docids").provenance == changed.provenance


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


def _change_byte(path: Path, place: int, value: int):
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)


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
    "codes with a damaged header": lambda f: _change_byte(f / "codes.npy", 118, 0x0B),
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
    "an end token": _header("eos", True),
    "eos a word": _header("eos", "yes"),
    "other tokens": _header("first_tokens", [7, 7]),
    "tokens of another level": _header("first_tokens", [7]),
    "tokens a number": _header("first_tokens", 7),
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
