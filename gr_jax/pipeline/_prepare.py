"""Corpus -> docids -> vocabulary -> examples -> token cache."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gr_jax.corpus import Collection, Corpus
from gr_jax.data import (
    BYTES,
    EXAMPLES_PER_FILE,
    Batches,
    ExampleMixture,
    ExampleSource,
    MixtureCache,
    MixtureSource,
    RegisteredMixture,
    Tokenizer,
    build_cache,
    check_tokens,
    document_chunks,
    load_tokenizer,
    local_copy,
    train_tokenizer,
    write_bytes_vocabulary,
    write_examples,
)
from gr_jax.docids import DocidAssigner, DocidMap
from gr_jax.errors import UserError
from gr_jax.files import atomic_directory, atomic_file, local_path
from gr_jax.pipeline._workspace import Workspace
from gr_jax.queries import SyntheticQueries
from gr_jax.serving import write_tables

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the model reads.

    Attributes:
      index_rate: weight of document chunks in the mixture.
      synthetic_rate: weight of synthetic queries.
      queries_rate: weight of the corpus's training queries.
      chunk_words: words of an indexing example.
      sentencepiece: a SentencePiece model to use, T5's for instance, or `bytes` for ByT5's
        vocabulary; None trains a model on the corpus, or takes that of the gr_jax checkpoint that
        training starts from.
      words_only: reduce text to its case-folded words, as vocabularies that were trained here want
        it: for a `sentencepiece` of another model directory.
      vocab_size: pieces of the model trained on the corpus.
      input_length: tokens of an example or a query at most, the end token included.
      batch_size: examples per step.
      row_length: tokens of a packed row.
      max_per_row: examples of a packed row at most.
      pack: False puts one example in a row.
      examples_per_file: lines of an example file. The number of files decides over how many hosts
        another SeqIO program can spread a task, and how many `workers` a task can have here.
      workers: processes that tokenise the examples.
      use_cached: read the tasks' SeqIO caches, which `seqio_cache_tasks` makes with as many
        machines as Beam has; t5x's `USE_CACHED_TASKS`. False tokenises here.
      cache_dirs: where these are looked for, before `MODEL_DIR/seqio_cache`; t5x's
        `--seqio_additional_cache_dirs`.
      mixture: a SeqIO mixture or task of `text -> docid tokens` to train on instead of the examples
        that are made here, at its own rates; t5x's `MIXTURE_OR_TASK_NAME`. Its tokens are those of
        `sentencepiece`, and its docids those of `MODEL_DIR/docids`.
      mixture_module: registers it; t5x's `MIXTURE_OR_TASK_MODULE`.
      local_cache: a folder on each host's own disk, or in its memory, to copy the token cache to
        and read it from: for a `MODEL_DIR` on a network, which is slow to read at random.
    """

    index_rate: float = 0.1
    synthetic_rate: float = 0.75
    queries_rate: float = 0.15
    chunk_words: int = 32
    sentencepiece: str | None = None
    words_only: bool = False
    vocab_size: int = 8000
    input_length: int = 64
    batch_size: int = 512
    row_length: int = 64
    max_per_row: int = 8
    pack: bool = True
    examples_per_file: int = EXAMPLES_PER_FILE
    workers: int = 1
    use_cached: bool = False
    cache_dirs: tuple[str, ...] = ()
    mixture: str | None = None
    mixture_module: str | None = None
    local_cache: str | None = None

    def __post_init__(self):
        for name in (
            "chunk_words", "vocab_size", "input_length", "batch_size", "max_per_row",
            "examples_per_file", "workers",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"DataConfig.{name} is {getattr(self, name)}: at least 1 is needed")
        rates = (self.index_rate, self.synthetic_rate, self.queries_rate)
        if min(rates) < 0 or self.index_rate + self.synthetic_rate <= 0:
            raise UserError(
                f"DataConfig's rates are {rates}: none below 0, and index or synthetic above 0"
            )
        if self.words_only and self.sentencepiece == BYTES:
            raise UserError("DataConfig.words_only is True: ByT5's bytes want text as it is")
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
    # what can be refused is refused before anything is written
    check_inputs(workspace, collection, docids=docids, data=data)
    workspace.claim(collection.corpus)
    training = _training_pairs(collection)
    job = _Job(workspace, collection.corpus, training, data, log)
    docid_map, docid_key = job.assign_docids(docids)
    tokenizer, vocabulary_key = job.make_vocabulary()
    upstream = [docid_key, vocabulary_key]
    if data.mixture is None:
        cache = job.cache_examples(
            docid_map, job.write_examples(docid_map, tokenizer, queries, upstream)
        )
    else:
        cache = job.cache_mixture(docid_map, tokenizer, upstream)
    return Prepared(docid_map, tokenizer, cache, data)


def check_inputs(
    workspace: Workspace, collection: Collection, *, docids: DocidAssigner, data: DataConfig
) -> None:
    """Refuses what `prepare` refuses at its beginning; writes nothing."""
    docids.check(collection.corpus)
    if data.sentencepiece not in (None, BYTES):
        load_tokenizer(Path(data.sentencepiece), words_only=False)
    workspace.check(collection.corpus)


def _training_pairs(collection: Collection) -> list[tuple[str, int]]:
    """The training queries, each with the row of a relevant document."""
    if collection.train is None:
        return []
    rows = {document.doc_id: row for row, document in enumerate(collection.corpus.documents)}
    return [
        (query.text, rows[doc_id])
        for query in collection.train.queries
        for doc_id in collection.train.relevant(query.query_id)
    ]


@dataclasses.dataclass(frozen=True)
class _Job:
    """The stages of one call of `prepare`; each returns its result and its key."""

    workspace: Workspace
    corpus: Corpus
    training: list[tuple[str, int]]
    data: DataConfig
    log: Log

    def assign_docids(self, docids: DocidAssigner) -> tuple[DocidMap, str]:
        def build() -> None:
            self.log(f"docids: {type(docids).__name__}")
            docids.assign(self.corpus).save(self.workspace.docids)

        key = self.workspace.stage(
            "docids",
            {"corpus": self.corpus.fingerprint, "assigner": _describe(docids)},
            self.workspace.docids / "docid_map.json",
            build,
        )
        docid_map = DocidMap.load(self.workspace.docids)

        def tables() -> None:
            titles = ((document.doc_id, document.title) for document in self.corpus.documents)
            write_tables(self.workspace.path, docid_map, titles)

        self.workspace.stage("tables", {"docids": key}, self.workspace.documents, tables)
        return docid_map, key

    def make_vocabulary(self) -> tuple[Tokenizer, str]:
        given, path = self.data.sentencepiece, self.workspace.sentencepiece

        def build() -> None:
            if given == BYTES:
                write_bytes_vocabulary(path)
                return
            if given:
                with atomic_file(path) as temporary:
                    shutil.copyfile(given, temporary)
                return
            self.log(f"vocabulary: SentencePiece of up to {self.data.vocab_size} pieces")
            texts = itertools.chain(
                (document.body for document in self.corpus.documents),
                (text for text, _ in self.training),
            )
            train_tokenizer(texts, path, vocab_size=self.data.vocab_size)

        settings = {
            "corpus": self.corpus.fingerprint,
            "training": self.training,
            "sentencepiece": content_of(given),
            "vocab_size": self.data.vocab_size,
        }
        if given and self.data.words_only:
            settings["words_only"] = True
        key = self.workspace.stage("vocabulary", settings, path, build)
        return load_tokenizer(path, words_only=given is None or self.data.words_only), key

    def write_examples(
        self,
        docid_map: DocidMap,
        tokenizer: Tokenizer,
        queries: SyntheticQueries,
        upstream: list[str],
    ) -> str:
        def build() -> None:
            self.log(f"examples: {queries.per_document} synthetic queries for each document")
            with atomic_directory(self.workspace.examples) as folder:
                counts = {
                    name: write_examples(
                        folder,
                        name,
                        docid_map,
                        ((tokenizer.clean(text), row) for text, row in pairs),
                        per_file=self.data.examples_per_file,
                    )
                    for name, pairs in (
                        ("index", document_chunks(self.corpus, words=self.data.chunk_words)),
                        ("synthetic", queries.generate(self.corpus, self.training)),
                        ("queries", self.training),
                    )
                }
            self.workspace.note("example_counts", counts)

        return self.workspace.stage(
            "examples",
            {
                "upstream": upstream,
                "queries": _describe(queries),
                "chunk_words": self.data.chunk_words,
                "examples_per_file": self.data.examples_per_file,
            },
            self.workspace.examples,
            build,
        )

    def cache_examples(self, docid_map: DocidMap, examples_key: str) -> MixtureCache:
        counts = self.workspace.noted("example_counts")
        rates = {
            "index": self.data.index_rate,
            "synthetic": self.data.synthetic_rate,
            "queries": self.data.queries_rate,
        }
        mixture = ExampleMixture(
            name="gr_jax",
            directory=self.workspace.examples,
            sources=[ExampleSource(name, rates[name], counts[name]) for name in rates],
            sentencepiece=self.workspace.sentencepiece,
            target_vocab_size=docid_map.vocabulary.size,
        )

        def build() -> None:
            parts = ", ".join(f"{source.examples:,} {source.name}" for source in mixture.sources)
            self.log(f"cache: {parts} examples")
            mixture.save()  # first: SeqIO's own caching needs it
            self._build_cache(mixture, docid_map.vocabulary.max_tokens)

        return self._cache({"examples": examples_key, "rates": rates}, build)

    def cache_mixture(
        self, docid_map: DocidMap, tokenizer: Tokenizer, upstream: list[str]
    ) -> MixtureCache:
        assert self.data.mixture is not None
        mixture = RegisteredMixture(self.data.mixture, self.data.mixture_module)

        def build() -> None:
            self.log(f"cache: all examples of {mixture.name}")
            # with room for one token more than docids have, so that one too many is seen
            cache = self._build_cache(mixture, docid_map.vocabulary.max_tokens + 1)
            check_tokens(cache, docid_map, tokenizer.vocab_size)

        return self._cache({"upstream": upstream, "mixture": mixture.name}, build)

    def _cache(self, settings: dict[str, Any], build: Callable[[], None]) -> MixtureCache:
        settings["input_length"] = self.data.input_length
        if self.data.use_cached:  # the same examples in another order
            settings["use_cached"] = True
        self.workspace.stage("cache", settings, self.workspace.cache / "mixture.json", build)
        cache = self.workspace.cache
        if self.data.local_cache:
            cache = local_copy(cache, local_path(self.data.local_cache))
        return MixtureCache.load(cache)

    def _build_cache(self, mixture: MixtureSource, target_length: int) -> MixtureCache:
        caches = (*self.data.cache_dirs, str(self.workspace.seqio_cache))
        return build_cache(
            self.workspace.cache,
            mixture,
            input_length=self.data.input_length,
            target_length=target_length,
            cache_dirs=caches if self.data.use_cached else (),
            workers=self.data.workers,
        )


def _describe(part: Any) -> str:
    """A config value as text: what its stage's output depends on."""
    settings = dataclasses.asdict(part)
    if settings.get("embeddings"):
        settings["embeddings"] = content_of(settings["embeddings"])
    fields = ", ".join(f"{k}={v!r}" for k, v in sorted(settings.items()))
    return f"{type(part).__name__}({fields})"


def content_of(path: str | None) -> str | None:
    """A fingerprint of a file: what is in it counts, not where it lies."""
    if path in (None, BYTES):
        return path
    with Path(path).open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
