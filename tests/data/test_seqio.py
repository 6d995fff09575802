"""The way from example files over SeqIO into the token cache. The one module with TensorFlow."""

import json
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gr_jax.data import (
    Batches,
    ExampleSource,
    MixtureCache,
    build_cache,
    load_tokenizer,
    train_tokenizer,
    write_bytes_vocabulary,
    write_examples,
)
from gr_jax.docids import DocidMap, docid_map_from_tokens
from gr_jax.errors import UserError
from tests.conftest import TOPICS

INPUT_LENGTH = 12
NAME = "made"

ODD = [
    "straße İstanbul ﬁne ǅ",
    "e\u0301 versus \u00e9, \u1e9b\u0323",  # combining marks
    "中文 字符 テスト 한국어",
    "\U0001f600 emoji \U0001f468\u200d\U0001f469 family",
    "zero\u200bwidth and \u00ad soft, nb\u00a0sp \u2003 em",
    "\ufeffmark first",
    "control \x01 \x7f \x85 characters \u2028 line \u2029 paragraph",
    "full \uff11\uff12\uff13 \uff21\uff22\uff23 ㍿ ½ ℃",
    "\u202eright to left שלום مرحبا",
    "▁ the piece mark ▁▁ itself",
    "<pad> </s> <unk> <s>",
    "a",
    "word " * 40,
    "'\"quotes\\ and , \\t \\n as text",
    "NUL \x00 inside",
    "\U0001d518\U0001d52b \ufffd \ufdfa",
]


class Made:
    """A corpus of a few dozen examples in three sources, and all that a cache is built of."""

    def __init__(self, folder: Path):
        rng = random.Random(0)
        vocabulary = " ".join(TOPICS.values()).split()
        texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 9))) for _ in range(40)]
        self.folder = folder
        # a docid is a prefix of another, so targets differ in length and end with the end token
        self.docid_map: DocidMap = docid_map_from_tokens(
            [f"d{i}" for i in range(8)], [(i,) if i < 2 else (i % 3, i) for i in range(8)]
        )
        train_tokenizer([*texts, *ODD], folder / "sp.model", vocab_size=200)
        # as it is: the raw odd texts reach SentencePiece on both sides
        self.tokenizer = load_tokenizer(folder / "sp.model", words_only=False)
        self.pairs = {
            "index": [(text, i % 8) for i, text in enumerate([*ODD, *texts])],
            "synthetic": [(text[::-1], i % 8) for i, text in enumerate(texts)],
            "queries": [(text, 3) for text in texts[:5]],
            "nothing": [("   ", 0)],
            "unwanted": [("soup", 0)],
        }
        self.rates = {
            "index": 0.25, "synthetic": 3.5, "queries": 1.0, "nothing": 1.0, "unwanted": 0.0
        }  # fmt: skip
        self.sources = [
            ExampleSource(
                name,
                self.rates[name],
                write_examples(folder / f"{name}.tsv", self.docid_map, pairs),
            )
            for name, pairs in self.pairs.items()
        ]
        self.cache = self.build(folder / "cache")

    def build(self, directory: Path, **changes) -> MixtureCache:
        return build_cache(
            directory,
            **(
                {
                    "name": NAME,
                    "examples": self.folder,
                    "sources": self.sources,
                    "sentencepiece": self.folder / "sp.model",
                    "target_vocab_size": self.docid_map.vocabulary.size,
                    "input_length": INPUT_LENGTH,
                    "target_length": self.docid_map.vocabulary.max_tokens,
                }
                | changes
            ),
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("seqio"))


def stripped(tokens: np.ndarray) -> list[int]:
    return [t for t in tokens.tolist() if t]


def test_rates_and_sizes_are_kept(made):
    cache = made.cache
    assert [task.name for task in cache.tasks] == ["index", "queries", "synthetic"]  # SeqIO sorts
    assert cache.rates == (0.25, 1.0, 3.5)
    assert cache.sizes == (len(ODD) + 40, 5, 40)
    for task in cache.tasks:
        assert isinstance(
            task.tokens["inputs"], np.memmap
        )  # a large corpus is not read into memory
        for feature in ("inputs", "targets"):
            assert task.offsets[feature].dtype == np.int64
            assert task.tokens[feature].dtype == np.int32


def test_tokens_are_those_of_the_tokenizer(made):
    for task in made.cache.tasks:
        pairs = made.pairs[task.name]
        ids = made.tokenizer.encode([text for text, _ in pairs], INPUT_LENGTH)
        assert len(task) == len(pairs)
        for i, (text, row) in enumerate(pairs):
            assert task.example("inputs", i).tolist() == stripped(ids[i]), text
            assert task.example("targets", i).tolist() == stripped(made.docid_map.tokens[row])
        lengths = task.lengths("inputs", np.arange(len(task)))
        assert lengths.tolist() == [len(stripped(row)) for row in ids]
        assert lengths.max() <= INPUT_LENGTH and lengths.min() >= 2


def test_bytes_are_those_of_the_tokenizer(made, tmp_path):
    write_bytes_vocabulary(tmp_path / "bytes")
    tokenizer = load_tokenizer(tmp_path / "bytes", words_only=False)
    cache = made.build(tmp_path / "cache", name="bytes", sentencepiece=tokenizer.path)
    for task in cache.tasks:
        ids = tokenizer.encode([text for text, _ in made.pairs[task.name]], INPUT_LENGTH)
        for i in range(len(task)):
            assert stripped(task.example("inputs", i)) == stripped(ids[i])


def test_loading_gives_the_same(made):
    again = MixtureCache.load(made.folder / "cache")
    assert again.rates == made.cache.rates
    for a, b in zip(again.tasks, made.cache.tasks, strict=True):
        assert a.name == b.name
        for feature in ("inputs", "targets"):
            np.testing.assert_array_equal(a.tokens[feature], b.tokens[feature])
            np.testing.assert_array_equal(a.offsets[feature], b.offsets[feature])


def test_batches_of_a_real_cache_hold_real_examples(made):
    batches = Batches(
        cache=made.cache,
        batch_size=32,
        row_length=INPUT_LENGTH,
        max_targets=4,
        target_length=made.docid_map.vocabulary.max_tokens,
    )
    arrays = batches(0).arrays
    texts = {made.tokenizer.decode(task.example("inputs", i).tolist())
             for task in made.cache.tasks for i in range(len(task))}  # fmt: skip
    for tokens, segments in zip(
        arrays["encoder_input_tokens"], arrays["encoder_segment_ids"], strict=True
    ):
        for segment in range(1, segments.max() + 1):
            assert made.tokenizer.decode(tokens[segments == segment].tolist()) in texts


def test_building_again_in_the_same_process(made, tmp_path):
    sources = [ExampleSource("queries", 0.5, 5)]
    first = made.build(tmp_path / "cache", sources=sources, input_length=4)
    assert first.sizes == (5,) and first.rates == (0.5,)
    assert first.tasks[0].lengths("inputs", np.arange(5)).max() <= 4
    second = made.build(tmp_path / "cache")  # other settings, the same names
    assert second.sizes == made.cache.sizes
    assert second.tasks[1].lengths("inputs", np.arange(5)).max() > 4
    assert {t.name: len(t) for t in second.tasks} == {
        "index": len(ODD) + 40,
        "queries": 5,
        "synthetic": 40,
    }
    assert not (tmp_path / "cache" / "unwanted.inputs.tokens.npy").exists()


def test_another_vocabulary_at_the_same_path(made, tmp_path):
    # SeqIO by itself would go on with the first model that it read there
    path, sources = tmp_path / "sp.model", [ExampleSource("queries", 0.5, 5)]
    texts = [text for text, _ in made.pairs["queries"]]
    found = []
    for vocab_size in (60, 200):
        train_tokenizer([*texts, *TOPICS.values()], path, vocab_size=vocab_size)
        (task,) = made.build(tmp_path / "cache", sources=sources, sentencepiece=path).tasks
        ids = load_tokenizer(path, words_only=False).encode(texts, INPUT_LENGTH)
        for i, row in enumerate(ids):
            assert task.example("inputs", i).tolist() == stripped(row)
        found.append(ids)
    assert not np.array_equal(*found)


def test_all_inputs_of_one_length(made, tmp_path):
    # a ragged batch of equal rows comes out dense
    write_examples(tmp_path / "same.tsv", made.docid_map, [("soup", 0)] * 3)
    cache = made.build(
        tmp_path / "cache", examples=tmp_path, sources=[ExampleSource("same", 1.0, 3)]
    )
    ids = stripped(made.tokenizer.encode(["soup"], INPUT_LENGTH)[0])
    assert [cache.tasks[0].example("inputs", i).tolist() for i in range(3)] == [ids] * 3


def test_more_examples_than_are_read_at_once(made, tmp_path, monkeypatch):
    from gr_jax.data import _cache

    monkeypatch.setattr(_cache, "_READ_BATCH", 7)
    cache = made.build(tmp_path / "cache")
    for a, b in zip(cache.tasks, made.cache.tasks, strict=True):
        np.testing.assert_array_equal(a.tokens["inputs"], b.tokens["inputs"])
        np.testing.assert_array_equal(a.offsets["targets"], b.offsets["targets"])


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_build_leaves_what_was_there(made, tmp_path, before, monkeypatch):
    directory = tmp_path / "cache"
    if before:
        shutil.copytree(made.folder / "cache", directory)

    save = np.save

    def interrupt(path, array):
        if path.name.startswith("synthetic"):
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.build(directory)
    assert [p.name for p in tmp_path.iterdir()] == (["cache"] if before else [])
    if before:
        assert MixtureCache.load(directory).sizes == made.cache.sizes
    else:
        with pytest.raises(UserError, match="missing"):
            MixtureCache.load(directory)


def _header(**changes):
    def damage(folder: Path):
        header = json.loads((folder / "mixture.json").read_text())
        header = {k: v for k, v in (header | changes).items() if v is not None}
        (folder / "mixture.json").write_text(json.dumps(header))

    return damage


def _cut(name: str):
    def damage(folder: Path):
        (folder / name).write_bytes((folder / name).read_bytes()[:-4])

    return damage


DAMAGE = {
    "no folder": shutil.rmtree,
    "no header": lambda f: (f / "mixture.json").unlink(),
    "header cut": _cut("mixture.json"),
    "header a list": lambda f: (f / "mixture.json").write_text("[]"),
    "no rates": _header(rates=None),
    "a rate less": _header(rates=[1.0, 2.0]),
    "rates of text": _header(rates=["a", "b", "c"]),
    "no tasks": _header(tasks=None),
    "another task": _header(tasks=["index", "synthetic", "more"]),
    "no tokens": lambda f: (f / "index.inputs.tokens.npy").unlink(),
    "tokens cut": _cut("index.inputs.tokens.npy"),
    "tokens empty": lambda f: (f / "index.inputs.tokens.npy").write_bytes(b""),
    "offsets cut": _cut("queries.targets.offsets.npy"),
    "offsets of another": lambda f: shutil.copy(
        f / "queries.inputs.offsets.npy", f / "synthetic.inputs.offsets.npy"
    ),
    "targets of another": lambda f: [
        shutil.copy(f / f"queries.targets.{part}.npy", f / f"synthetic.targets.{part}.npy")
        for part in ("tokens", "offsets")
    ],
    "offsets none": lambda f: np.save(f / "index.inputs.offsets.npy", np.zeros(0, np.int64)),
    "tokens pickled": lambda f: np.save(
        f / "index.inputs.tokens.npy", np.array([{}]), allow_pickle=True
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_caches_are_refused_in_one_line(made, tmp_path, damage):
    shutil.copytree(made.folder / "cache", tmp_path / "cache")
    damage(tmp_path / "cache")
    with pytest.raises(UserError, match="missing or damaged") as caught:
        MixtureCache.load(tmp_path / "cache")
    assert str(tmp_path / "cache") in str(caught.value) and "\n" not in str(caught.value)


# --- what t5x would do with the tasks


@pytest.fixture
def registered(made, tmp_path):
    """The mixture as SeqIO knows it, whatever another test registered under its name."""
    made.build(tmp_path / "cache")
    import seqio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries' own
        yield seqio


def test_tasks_are_ordinary_seqio_tasks(made, registered):
    seqio = registered
    task = seqio.get_mixture_or_task(f"{NAME}_queries")
    assert isinstance(task, seqio.Task)
    assert task.output_features["inputs"].vocabulary.vocab_size == made.tokenizer.vocab_size
    assert task.output_features["targets"].vocabulary.vocab_size == made.docid_map.vocabulary.size
    mixture = seqio.get_mixture_or_task(NAME)
    assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == {
        f"{NAME}_index": 0.25,
        f"{NAME}_synthetic": 3.5,
        f"{NAME}_queries": 1.0,
    }
    lengths = {"inputs": INPUT_LENGTH, "targets": 3}
    dataset = mixture.get_dataset(lengths, split="train", shuffle=True, seed=0, num_epochs=1)
    first = next(iter(dataset.as_numpy_iterator()))
    assert first["inputs"][-1] == 1 and len(first["targets"]) <= 3


@pytest.mark.parametrize("pack", [True, False])
def test_seqio_feature_converter_takes_the_tasks(made, registered, pack):
    seqio = registered
    task = seqio.get_mixture_or_task(f"{NAME}_index")
    lengths = {"inputs": 4 * INPUT_LENGTH, "targets": 12}
    dataset = task.get_dataset(lengths, split="train", shuffle=False, num_epochs=1)
    converter = seqio.EncDecFeatureConverter(pack=pack)
    found = Counter()
    for row in converter(dataset, task_feature_lengths=lengths).as_numpy_iterator():
        assert row["encoder_input_tokens"].shape == (4 * INPUT_LENGTH,)
        assert row["decoder_target_tokens"].shape == (12,)
        encoder = row["encoder_segment_ids"] if pack else row["encoder_input_tokens"] > 0
        decoder = row["decoder_segment_ids"] if pack else row["decoder_target_tokens"] > 0
        for segment in range(1, int(encoder.max()) + 1):
            targets = row["decoder_target_tokens"][decoder == segment]
            found[
                tuple(row["encoder_input_tokens"][encoder == segment].tolist()),
                tuple(targets.tolist()),
            ] += 1
    pairs = made.pairs["index"]
    ids = made.tokenizer.encode([text for text, _ in pairs], 4 * INPUT_LENGTH)
    assert found == Counter(
        (tuple(stripped(i)), tuple(stripped(made.docid_map.tokens[row])))
        for i, (_, row) in zip(ids, pairs, strict=True)
    )
