"""Corpus -> docids -> vocabulary -> examples -> token cache."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gr_jax.corpus import Collection
from gr_jax.data import (
    Batches,
    ExampleSource,
    MixtureCache,
    Tokenizer,
    build_cache,
    document_chunks,
    train_tokenizer,
    write_examples,
)
from gr_jax.docids import DocidAssigner, DocidMap
from gr_jax.errors import UserError
from gr_jax.files import atomic_file
from gr_jax.pipeline._workspace import Workspace
from gr_jax.queries import SyntheticQueries

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the model reads.

    Attributes:
      index_rate: weight of document chunks in the mixture.
      synthetic_rate: weight of synthetic queries.
      queries_rate: weight of the corpus's training queries.
      chunk_words: words of an indexing example.
      sentencepiece: a SentencePiece model to use, T5's for instance; None trains one on the corpus.
      vocab_size: pieces of the model trained on the corpus.
      input_length: tokens of an example or a query at most, the end token included.
      batch_size: examples per step.
      row_length: tokens of a packed row.
      max_per_row: examples of a packed row at most.
      pack: False puts one example in a row.
    """

    index_rate: float = 0.1
    synthetic_rate: float = 0.75
    queries_rate: float = 0.15
    chunk_words: int = 32
    sentencepiece: str | None = None
    vocab_size: int = 8000
    input_length: int = 64
    batch_size: int = 512
    row_length: int = 64
    max_per_row: int = 8
    pack: bool = True

    def __post_init__(self):
        if self.row_length < self.input_length:
            raise UserError(
                f"DataConfig.row_length={self.row_length} is shorter than "
                f"input_length={self.input_length}: a row must hold an example"
            )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that training reads."""

    docid_map: DocidMap
    tokenizer: Tokenizer
    cache: MixtureCache
    config: DataConfig

    def batches(self, *, row_multiple: int, seed: int) -> Batches:
        """The run's batches."""
        return Batches(
            cache=self.cache,
            batch_size=self.config.batch_size,
            row_length=self.config.row_length,
            max_targets=self.config.max_per_row,
            target_length=self.docid_map.vocabulary.max_tokens,
            row_multiple=row_multiple,
            seed=seed,
            pack=self.config.pack,
        )


def prepare(
    workspace: Workspace,
    collection: Collection,
    *,
    docids: DocidAssigner,
    queries: SyntheticQueries,
    data: DataConfig,
    log: Log = lambda _: None,
) -> Prepared:
    """Does the stages before training that are not done yet.

    Raises:
      UserError: the directory holds another corpus's index or a model of other settings, or a
        setting does not fit the corpus.
    """
    corpus = collection.corpus
    workspace.claim(corpus)
    rows = {document.doc_id: row for row, document in enumerate(corpus.documents)}
    training = [
        (query.text, rows[doc_id])
        for query in (collection.train.queries if collection.train else ())
        for doc_id in collection.train.relevant(query.query_id)  # pyright: ignore[reportOptionalMemberAccess]
    ]

    def make_docids() -> None:
        log(f"docids: {_describe(docids)}")
        docids.assign(corpus).save(workspace.docids)

    docid_key = workspace.stage(
        "docids",
        {"corpus": corpus.fingerprint, "assigner": _describe(docids)},
        workspace.docids / "docid_map.json",
        make_docids,
    )
    docid_map = DocidMap.load(workspace.docids)

    def make_vocabulary() -> None:
        if data.sentencepiece:
            Tokenizer(Path(data.sentencepiece), words_only=False)  # refuses what is not one
            with atomic_file(workspace.sentencepiece) as temporary:
                shutil.copyfile(data.sentencepiece, temporary)
            return
        log(f"vocabulary: SentencePiece of up to {data.vocab_size} pieces")
        texts = [d.body for d in corpus.documents] + [text for text, _ in training]
        train_tokenizer(texts, workspace.sentencepiece, vocab_size=data.vocab_size)

    vocabulary_key = workspace.stage(
        "vocabulary",
        {
            "corpus": corpus.fingerprint,
            "training": training,
            "sentencepiece": data.sentencepiece,
            "vocab_size": data.vocab_size,
        },
        workspace.sentencepiece,
        make_vocabulary,
    )
    tokenizer = Tokenizer(workspace.sentencepiece, words_only=data.sentencepiece is None)

    def write(name: str, pairs: Any) -> int:
        cleaned = ((tokenizer.clean(text), row) for text, row in pairs)
        return write_examples(workspace.examples / f"{name}.tsv", docid_map, cleaned)

    def make_examples() -> None:
        log(f"examples: {queries.per_document} synthetic queries for each document")
        workspace.examples.mkdir(parents=True, exist_ok=True)
        workspace.note(
            "example_counts",
            {
                "index": write("index", document_chunks(corpus, words=data.chunk_words)),
                "synthetic": write("synthetic", queries.generate(corpus, training)),
                "queries": write("queries", training),
            },
        )

    examples_key = workspace.stage(
        "examples",
        {
            "docids": docid_key,
            "vocabulary": vocabulary_key,
            "queries": _describe(queries),
            "chunk_words": data.chunk_words,
        },
        workspace.examples,
        make_examples,
    )
    counts = workspace.noted("example_counts")
    rates = {
        "index": data.index_rate,
        "synthetic": data.synthetic_rate,
        "queries": data.queries_rate,
    }
    sources = [ExampleSource(name, rates[name], counts[name]) for name in rates]

    def make_cache() -> None:
        log("cache: " + ", ".join(f"{s.examples:,} {s.name}" for s in sources) + " examples")
        build_cache(
            workspace.cache,
            name="gr_jax",
            examples=workspace.examples,
            sources=sources,
            sentencepiece=workspace.sentencepiece,
            target_vocab_size=docid_map.vocabulary.size,
            input_length=data.input_length,
            target_length=docid_map.vocabulary.max_tokens,
        )

    workspace.stage(
        "cache",
        {"examples": examples_key, "rates": rates, "input_length": data.input_length},
        workspace.cache / "mixture.json",
        make_cache,
    )
    return Prepared(docid_map, tokenizer, MixtureCache.load(workspace.cache), data)


def _describe(part: Any) -> str:
    """A config value as text: what its stage's output depends on."""
    fields = ", ".join(f"{k}={v!r}" for k, v in sorted(dataclasses.asdict(part).items()))
    return f"{type(part).__name__}({fields})"
