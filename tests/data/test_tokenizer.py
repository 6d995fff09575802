import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.corpus import normalize
from gr_jax.data import load_tokenizer, train_tokenizer, write_bytes_vocabulary
from gr_jax.data._tokenizer import EOS_ID, PAD_ID, UNK_ID
from gr_jax.errors import UserError
from tests.conftest import TOPICS


def sentences(n: int = 200) -> list[str]:
    rng = random.Random(0)
    vocabulary = " ".join(TOPICS.values()).split()
    return ["The " + " ".join(rng.choices(vocabulary, k=7)) + "." for _ in range(n)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "sp.model"
    train_tokenizer(sentences(), path, vocab_size=150)
    return path


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model, words_only=True)


def test_special_ids_are_those_of_t5(tokenizer):
    processor = tokenizer._processor
    assert (PAD_ID, EOS_ID, UNK_ID) == (0, 1, 2)
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    assert processor.bos_id() == -1
    assert tokenizer.vocab_size == processor.GetPieceSize() <= 150
    assert UNK_ID in tokenizer.encode(["soup \u4e2d"], 8)[0]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(texts=st.lists(st.text(), max_size=4), length=st.integers(1, 20))
def test_encode_ends_cuts_and_pads(tokenizer, texts, length):
    ids = tokenizer.encode(texts, length)
    assert ids.shape == (len(texts), length) and ids.dtype == np.int32
    for text, row in zip(texts, ids, strict=True):
        whole = tokenizer._processor.Encode(tokenizer.clean(text))
        expected = [*whole[: length - 1], EOS_ID]
        assert row.tolist() == expected + [PAD_ID] * (length - len(expected))


def test_decode_inverts_encode(tokenizer):
    for text in sentences(20):
        ids = tokenizer.encode([text], 64)[0]
        assert tokenizer.decode(ids.tolist()) == normalize(text)


def test_words_only(model, tokenizer):
    assert tokenizer.clean("  Soup,\tONION-stew!\n") == "soup onion stew"
    as_is = load_tokenizer(model, words_only=False)
    assert as_is.clean("  Soup,\tONION-stew!\n") == "Soup, ONION-stew!"
    same = tokenizer.encode(["soup onion", "SOUP... Onion?"], 16)
    np.testing.assert_array_equal(same[0], same[1])
    assert (as_is.encode(["SOUP... Onion?"], 16)[0] != same[0]).any()


def test_training_is_deterministic(tmp_path, model):
    train_tokenizer(iter(sentences()), tmp_path / "again.model", vocab_size=150)
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()


def test_training_is_the_same_elsewhere(tmp_path, model):
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.data.test_tokenizer import sentences, train_tokenizer\n"
        "train_tokenizer(sentences(), Path(sys.argv[1]), vocab_size=150)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "x.model"], check=True, timeout=100)
    assert (tmp_path / "x.model").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    "texts",
    [["a"], ["cat sat"], ["cat", "", "   ", "..."], ["\u4e2d\u6587"], ["a\x00b"]],
    ids=ascii,
)
def test_tiny_corpora(tmp_path, texts):
    train_tokenizer(texts, tmp_path / "sp.model", vocab_size=8192)
    tokenizer = load_tokenizer(tmp_path / "sp.model", words_only=True)
    assert 4 <= tokenizer.vocab_size < 30
    ids = tokenizer.encode(texts[:1], 16)[0]
    assert UNK_ID not in ids
    assert tokenizer.decode(ids.tolist()) == normalize(texts[0])


@pytest.mark.parametrize("texts", [[], [""], ["...", "?!", " \n"]])
def test_nothing_to_learn_from(tmp_path, texts):
    with pytest.raises(UserError, match=r"sp\.model: no text"):
        train_tokenizer(texts, tmp_path / "sp.model")
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_vocabulary(tmp_path):
    with pytest.raises(UserError, match="5 pieces") as caught:
        train_tokenizer(sentences(5), tmp_path / "sp.model", vocab_size=5)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "long",
    ["cat " * 5000 + "zebra " * 500, "\u732b" * 20_000 + "zebra" * 500],
    ids=["words", "one word"],
)
def test_very_long_texts_are_read_to_their_end(tmp_path, long):
    train_tokenizer([long, "dog"], tmp_path / "sp.model", vocab_size=100)
    tokenizer = load_tokenizer(tmp_path / "sp.model", words_only=True)
    assert UNK_ID not in tokenizer.encode(["zebra", long[:3]], 16)


def test_vocab_size_is_an_upper_bound(tmp_path):
    for size in (40, 50):
        train_tokenizer(sentences(), tmp_path / "sp.model", vocab_size=size)
        assert load_tokenizer(tmp_path / "sp.model", words_only=True).vocab_size == size


def test_texts_beyond_the_limit_are_not_read(tmp_path):
    def texts():
        yield "cat"
        yield "dog"
        raise AssertionError("read on")

    train_tokenizer(texts(), tmp_path / "sp.model", max_texts=2)


def test_files_that_are_no_model(tmp_path, model):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("soup\t-1.0\nonion\t-2.0\n")
    (tmp_path / "cut").write_bytes(model.read_bytes()[:-7])
    (tmp_path / "folder").mkdir()
    for name in ("empty", "text", "cut", "folder", "missing"):
        with pytest.raises(UserError, match=name) as caught:
            load_tokenizer(tmp_path / name, words_only=True)
        assert "\n" not in str(caught.value)


def test_bytes_are_byt5s(tmp_path):
    path = tmp_path / "vocabulary"
    write_bytes_vocabulary(path)
    tokenizer = load_tokenizer(path, words_only=False)
    assert tokenizer.vocab_size == 259
    # 3 + the byte; the second is cut, within a character
    ids = tokenizer.encode(["aé \n b", "ééé"], 6)
    assert ids.tolist() == [
        [3 + 97, 3 + 0xC3, 3 + 0xA9, 3 + 32, 3 + 98, 1],
        [3 + 0xC3, 3 + 0xA9, 3 + 0xC3, 3 + 0xA9, 3 + 0xC3, 1],
    ]
    assert tokenizer.decode(ids[0].tolist()) == "aé b"
    assert tokenizer.decode(ids[1].tolist()) == "éé"
