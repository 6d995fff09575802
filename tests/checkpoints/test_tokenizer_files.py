"""An export has the tokenizer that its model was trained with, and says so where it has none."""

import dataclasses
import json
from pathlib import Path

import pytest

from gr_jax.checkpoints import open_checkpoint, write_hugging_face, write_t5x_legacy
from gr_jax.cli import main
from gr_jax.data import load_tokenizer, train_tokenizer, write_bytes_vocabulary
from gr_jax.errors import UserError
from tests.checkpoints.conftest import CONFIGS, T5_1_1, source_of

TRAINING = [
    "soup onion garlic butter simmer oven bake flour knead roast pepper basil stew",
    "Straße café naïve ﬁne résumé Ärger",
    "日本語 テスト и немного слов ΣΊΣΥΦΟΣ",
] * 4
TEXTS = [
    "soup onion garlic",
    "Straße ΣΊΣΥΦΟΣ ΣΊΣΥΦΟσ café naïve",
    "ﬁne ½ cup — “flour”!",
    "日本語 テスト \uff11\uff12\uff13",
    "emoji 😀 here  twice\x1fspaced\tand\x0bmore",
    "don't_stop under_score x2 ǅ ŉ İ \u13a0 µ",
    "",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "sentencepiece.model"
    train_tokenizer(TRAINING, path, vocab_size=120)
    return path


def export_of_a_run(model_dir: Path, vocabulary: Path, *, words_only: bool) -> Path:
    """What becomes of `model_dir/checkpoint_3`; a run of `vocabulary`, or of bytes."""
    beside = model_dir / "vocabulary" / "sentencepiece.model"
    beside.parent.mkdir(parents=True)
    if vocabulary.exists():
        beside.write_bytes(vocabulary.read_bytes())
    else:
        write_bytes_vocabulary(beside)
    (model_dir / "index.json").write_text(json.dumps({"words_only": words_only}))
    source = source_of(CONFIGS["docids"])
    source = dataclasses.replace(source, path=str(model_dir / "checkpoint_3"), format="gr-jax")
    write_hugging_face(source, model_dir / "export")
    return model_dir / "export"


def test_files_of_hugging_face_are_copied(tmp_path, capsys):
    write_hugging_face(source_of(T5_1_1), tmp_path / "source")
    files = {
        "spiece.model": b"\x00\x01",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{ }",
        "special_tokens_map.json": b"{  }",
    }
    for name, content in files.items():
        (tmp_path / "source" / name).write_bytes(content)
    (tmp_path / "source" / "README.md").write_text("not a tokenizer")
    for source, to in (("source", "x"), ("source/model.safetensors", "y")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / to)]) == 0
        assert capsys.readouterr().out.count("\n") == 1
        written = {p.name: p.read_bytes() for p in (tmp_path / to).iterdir()}
        assert written.keys() == files.keys() | {"model.safetensors", "config.json"}
        assert files.items() <= written.items()


def test_an_export_without_a_tokenizer_says_so(tmp_path, capsys):
    write_hugging_face(source_of(CONFIGS["umt5"]), tmp_path / "hf")
    write_t5x_legacy(open_checkpoint(tmp_path / "hf"), tmp_path / "t5x")
    for source in ("hf", "t5x"):
        to = tmp_path / f"of_{source}"
        assert main(["convert", str(tmp_path / source), str(to)]) == 0
        _, first, second = capsys.readouterr().out.splitlines()
        assert first.startswith(f"{to}: has no tokenizer") and "save_pretrained" in first
        assert "model.config.tie_word_embeddings = False" in second
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "z"), "--to", "t5x"]) == 0
    assert "tokenizer" not in capsys.readouterr().out


def test_a_runs_vocabulary_becomes_a_tokenizer(tmp_path, vocabulary):
    export = export_of_a_run(tmp_path / "words", vocabulary, words_only=True)
    made = json.loads((export / "tokenizer.json").read_text("utf-8"))
    pieces = [piece for piece, _ in made["model"]["vocab"]]
    assert len(pieces) == load_tokenizer(vocabulary, words_only=True).vocab_size
    assert pieces[:3] == ["<pad>", "</s>", "<unk>"]
    assert not (export / "spiece.model").exists()  # alone it reads more than words
    as_it_is = export_of_a_run(tmp_path / "text", vocabulary, words_only=False)
    assert (as_it_is / "spiece.model").read_bytes() == vocabulary.read_bytes()
    assert json.loads((as_it_is / "tokenizer.json").read_text("utf-8"))["model"] == made["model"]


def test_a_run_without_its_record_has_no_tokenizer_and_a_damaged_one_is_named(tmp_path, vocabulary):
    export_of_a_run(tmp_path / "run", vocabulary, words_only=True)
    index = tmp_path / "run" / "index.json"
    source = dataclasses.replace(
        source_of(T5_1_1), path=str(tmp_path / "run" / "checkpoint_3"), format="gr-jax"
    )
    index.write_text("{")
    with pytest.raises(UserError, match=r"index\.json: damaged"):
        write_hugging_face(source, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    index.unlink()
    write_hugging_face(source, tmp_path / "x")
    assert not list((tmp_path / "x").glob("*token*"))


@pytest.mark.torch
def test_transformers_makes_our_ids(run_torch, tmp_path, vocabulary):
    """Of the SentencePiece models of runs and of published ones, and of bytes."""
    runs = {
        "words": (vocabulary, True),
        "text": (vocabulary, False),
        "bytes": (tmp_path / "absent", False),
    }
    exports = {
        name: export_of_a_run(tmp_path / name, path, words_only=words_only)
        for name, (path, words_only) in runs.items()
    }
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS), "utf-8")
    printed = run_torch(
        "tests.checkpoints.hf_reference",
        *("--texts", tmp_path / "texts.json", "--encode", *exports.values()),
    )
    theirs = json.loads(printed)
    for name, (_, words_only) in runs.items():
        path = tmp_path / name / "vocabulary" / "sentencepiece.model"
        tokenizer = load_tokenizer(path, words_only=words_only)
        for text, ids in zip(TEXTS, theirs[str(exports[name])], strict=True):
            if name == "bytes" and text != tokenizer.clean(text):
                continue  # ByT5's tokenizer keeps spaces as they are
            ours = tokenizer.encode([text], 200)[0]
            assert ids == ours[: len(ids)].tolist() and not ours[len(ids) :].any(), (name, text)
