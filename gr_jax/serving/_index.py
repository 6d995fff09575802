"""`Index`: a trained model directory that answers queries."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gr_jax.corpus import whole_characters
from gr_jax.data import Tokenizer, load_tokenizer
from gr_jax.decoding import BeamSearch, SearchResult, Trie, find_best, score_all
from gr_jax.docids import DocidMap, DocidVocabulary
from gr_jax.errors import UserError
from gr_jax.files import atomic_file, local_path
from gr_jax.models import (
    InferenceWeights,
    Precision,
    T5Config,
    count_parameters,
    init_parameters,
)
from gr_jax.serving._config import SearchConfig
from gr_jax.serving._corpus import IndexedCorpus
from gr_jax.serving._memory import device_memory
from gr_jax.serving._model import Model
from gr_jax.serving._parameters import SavedParameters
from gr_jax.training import Partitioner, find_eval_checkpoint

_ONE_QUERY = SearchConfig(beam=20)  # what a person who waits for ten documents wants


@dataclasses.dataclass(frozen=True)
class IndexSpec:
    """What is needed beside the arrays to answer queries: `MODEL_DIR/index.json`.

    Attributes:
      model: the model's shape.
      docid_fingerprint: of the `DocidMap` it was trained on.
      words_only: whether the vocabulary reads text reduced to its words.
      input_length: tokens of a query at most.
      seed: of the training run.
      command: the command line that trained it.
    """

    model: T5Config
    docid_fingerprint: str
    words_only: bool
    input_length: int
    seed: int
    command: str

    def save(self, path: Path) -> None:
        """Writes one JSON object."""
        record = dataclasses.asdict(self)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
          UserError: missing or damaged.
        """
        try:
            record = json.loads(path.read_text("utf-8"))
            return cls(**(record | {"model": T5Config(**record["model"])}))
        except OSError as error:
            raise UserError(
                f"{path.parent}: holds no trained index; train one there first "
                f"(gr-jax quickstart --model_dir={path.parent})"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error}); train again to restore it") from error


class Result(NamedTuple):
    """One ranked document."""

    rank: int
    doc_id: str
    title: str
    score: float
    docid: str


class Latency(NamedTuple):
    """Milliseconds of one query: the median, and what 95 and 99 of 100 queries stay below."""

    median: float
    p95: float
    p99: float


class Index:
    """A trained index, loaded from its model directory. Any number of threads may ask it."""

    def __init__(
        self,
        spec: IndexSpec,
        corpus: IndexedCorpus,
        tokenizer: Tokenizer,
        model: Model,
        step: int,
        partitioner: Partitioner | None = None,
    ):
        """See `load`; `model` has its weights where `partitioner` puts them."""
        self.spec = spec
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.step = step
        self._model, self._partitioner = model, partitioner
        self._devices = 1 if partitioner is None else partitioner.mesh.size
        self._lock = threading.RLock()
        self._trie: Trie | None = None

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        step: int | None = None,
        partitioner: Partitioner | None = None,
    ) -> Self:
        """Opens the checkpoint of `step`, or the newest, of `model_dir`.

        Its parameters are read when a search first wants them in its precision, array by array, and
        only the weights of that precision are kept. `weights` reads them at once.

        Args:
          model_dir: of a trained index.
          step: of the checkpoint.
          partitioner: spreads model and queries over devices of this process; None for one device.

        Raises:
          UserError: nothing is trained there yet, there is no such checkpoint, a file is damaged,
            parts do not belong together, or the model does not divide.
        """
        path = local_path(model_dir)
        spec = IndexSpec.load(path / "index.json")
        corpus = IndexedCorpus.open(path)
        if corpus.fingerprint != spec.docid_fingerprint:
            raise UserError(
                f"{path}: its docids ({corpus.fingerprint[:12]}) are not those that the model "
                f"was trained on ({spec.docid_fingerprint[:12]})"
            )
        checkpoint, step = find_eval_checkpoint(path, spec.docid_fingerprint, step)
        return cls(
            spec,
            corpus,
            load_tokenizer(path / "vocabulary" / "sentencepiece.model", words_only=spec.words_only),
            Model(SavedParameters(checkpoint, spec.model, partitioner).weights),
            step,
            partitioner,
        )

    def refreshed(self, docid_map: DocidMap, titles: Mapping[str, str]) -> Index:
        """An index of other documents (`DocidMap.extended`, `without`) for the same model.

        It shares weights and, unless its sizes are quite different, compiled programs. This index
        goes on answering; nothing is written.

        Args:
          docid_map: the documents; its levels, and whether docids end, are as in training.
          titles: by document; the others have none.

        Raises:
          UserError: the docids do not fit the model.
        """
        corpus = IndexedCorpus(docid_map, titles.items, before=self.corpus.trie)
        _ = corpus.trie  # refused now
        return Index(self.spec, corpus, self.tokenizer, self._model, self.step, self._partitioner)

    @property
    def docid_map(self) -> DocidMap:
        """All documents and docids, read into memory; searches need only parts of them."""
        return self.corpus.docid_map

    @property
    def parameter_count(self) -> int:
        """Number of scalars of the model."""
        return count_parameters(
            jax.eval_shape(lambda: init_parameters(self.spec.model, jax.random.key(0)))
        )

    def nbytes(self, precision: Precision | None = None) -> int:
        """Bytes of what answers queries: weights, trie and vocabulary."""
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights(precision)))
        return weights + self.trie.nbytes + self.tokenizer.path.stat().st_size

    @property
    def trie(self) -> Trie:
        """The valid docids, on the device, or on each of the mesh."""
        with self._lock:
            if self._trie is not None:
                return self._trie
            everywhere = None
            if self._partitioner is not None:
                everywhere = NamedSharding(self._partitioner.mesh, PartitionSpec())
            self._trie = trie = jax.device_put(self.corpus.trie, everywhere)
            return trie

    def weights(self, precision: Precision | None = None) -> InferenceWeights:
        """The model, arranged for search; None for the precision that it was trained in.

        Raises:
          UserError: the checkpoint is damaged or has gone, or the devices' memory is too small.
        """
        with device_memory(self._devices):
            return self._model.weights(self.precision(precision))

    def precision(self, precision: Precision | None = None) -> Precision:
        """`precision`, or the one that the model was trained in."""
        return precision or self.spec.model.dtype  # pyright: ignore[reportReturnType]

    def searcher(self, config: SearchConfig, k: int) -> BeamSearch:
        """The search for `k` documents."""

        def make(weights: InferenceWeights) -> BeamSearch:
            return BeamSearch(weights, self.trie, beam=config.width(k), k=k, score=config.score)

        with device_memory(self._devices):
            settings = (config.width(k), k, config.score)
            return self._model.search(self.precision(config.precision), self.corpus, settings, make)

    def tokens(self, queries: Sequence[str]) -> np.ndarray:
        """Queries as source tokens [n, input length].

        Raises:
          UserError: `queries` is one text, or one of them is none.
        """
        if isinstance(queries, str):
            raise UserError("queries is one text: give a list of queries, [query] for one")
        for query in queries:
            if not isinstance(query, str):
                raise UserError(f"a query is {query!r}: text is needed")
        return self.tokenizer.encode(list(map(whole_characters, queries)), self.spec.input_length)

    def find(
        self,
        queries: Sequence[str],
        *,
        k: int,
        config: SearchConfig,
        only: Iterable[str] | None = None,
    ) -> SearchResult:
        """The best `k` documents for each query, as rows of `docid_map`.

        Args:
          queries: what is asked.
          k: documents per query.
          config: how to search.
          only: ids of the documents that may be returned; all if None. Under the score
            `children`, log-probabilities are relative to these.

        Raises:
          UserError: `k` is below 1, `queries` is no list of texts, a document of `only` is not in
            the index, or see `weights`.
        """
        k = _checked(k)
        tokens = self.tokens(queries)
        subset = None
        if only is not None:
            only = [only] if isinstance(only, str) else only  # not its characters
            subset = self.corpus.trie.subset(self.corpus.documents.rows_of(only))
        with device_memory(self._devices):
            return self.searcher(config, k).search(
                tokens,
                subset=subset,
                exact=config.exact,
                most_beam=config.most_beam,
            )

    def score_documents(self, queries: Sequence[str], config: SearchConfig) -> np.ndarray:
        """Log-probabilities of every document, by row of `docid_map` [queries, documents]."""
        weights, tokens = self.weights(config.precision), self.tokens(queries)
        with device_memory(self._devices):
            return score_all(weights, self.docid_map, tokens, config.score, self._vocabulary)

    def find_exactly(self, queries: Sequence[str], *, k: int, config: SearchConfig) -> SearchResult:
        """Like `find`, by scoring every document; the beams of `config` do not matter."""
        k = _checked(k)
        weights, tokens = self.weights(config.precision), self.tokens(queries)
        with device_memory(self._devices):
            return find_best(weights, self.docid_map, tokens, config.score, self._vocabulary, k=k)

    @property
    def _vocabulary(self) -> DocidVocabulary:
        return self.corpus.trie.shape.vocabulary

    def rank(
        self, queries: Sequence[str], *, k: int, config: SearchConfig
    ) -> list[list[tuple[str, float]]]:
        """Ranked (document, log-probability) lists, best first; see `find`."""
        return self.documents(self.find(queries, k=k, config=config))

    def rank_exactly(
        self, queries: Sequence[str], *, k: int, config: SearchConfig
    ) -> list[list[tuple[str, float]]]:
        """Like `rank`, by scoring every document of the corpus; see `find_exactly`."""
        return self.documents(self.find_exactly(queries, k=k, config=config))

    def documents(self, found: SearchResult) -> list[list[tuple[str, float]]]:
        """What was found, as (document, log-probability) lists, best first."""
        doc_id = self.corpus.documents.doc_id
        return [
            [(doc_id(row), score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]

    def search(
        self,
        query: str,
        *,
        k: int = 10,
        config: SearchConfig = _ONE_QUERY,
        only: Iterable[str] | None = None,
    ) -> list[Result]:
        """The best `k` documents for one query; see `find`."""
        return self.results(self.find([query], k=k, config=config, only=only))[0]

    def results(self, found: SearchResult) -> list[list[Result]]:
        """What was found, with titles and docids."""
        corpus = self.corpus
        return [
            [
                Result(
                    rank=rank,
                    doc_id=corpus.documents.doc_id(row),
                    title=corpus.documents.title(row),
                    score=score,
                    docid=corpus.docid_string(row),
                )
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
                if row >= 0
            ]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]

    def latency(
        self,
        queries: Sequence[str],
        *,
        k: int,
        config: SearchConfig,
        exactly: bool = False,
        most: int = 200,
    ) -> Latency:
        """Milliseconds per query, one query at a time from text to documents.

        Every query is answered once before it is timed, so that nothing is compiled in between.
        `exactly` times `rank_exactly` instead of `rank`.
        """
        rank = self.rank_exactly if exactly else self.rank
        queries = list(queries[:most])
        seconds = []
        for timed in (False, True):
            for query in queries:
                start = time.perf_counter()
                rank([query], k=k, config=config)
                if timed:
                    seconds.append(time.perf_counter() - start)
        return Latency(*(1000 * np.percentile(seconds or [0.0], [50, 95, 99])).tolist())


def _checked(k: int) -> int:
    if not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k is {k!r}: at least 1 document is needed, as a whole number")
    return int(k)
