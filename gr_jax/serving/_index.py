"""`Index`: a trained model directory that answers queries."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax
import numpy as np

from gr_jax.corpus import read_corpus
from gr_jax.data import Tokenizer, load_tokenizer
from gr_jax.decoding import BeamSearch, SearchResult, Trie, score_all
from gr_jax.docids import DocidMap
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
from gr_jax.serving._memory import device_memory
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


class Index:
    """A trained index, loaded from its model directory."""

    def __init__(
        self,
        spec: IndexSpec,
        docid_map: DocidMap,
        tokenizer: Tokenizer,
        prepare: Callable[[Precision], InferenceWeights],
        step: int,
        corpus_file: Path,
        devices: int = 1,
    ):
        """See `load`; `prepare` makes the model's weights, on so many devices."""
        self.spec = spec
        self.docid_map = docid_map
        self.tokenizer = tokenizer
        self.step = step
        self._prepare, self._devices = prepare, devices
        self._corpus_file = corpus_file

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
        docid_map = DocidMap.load(path / "docids")
        if docid_map.fingerprint != spec.docid_fingerprint:
            raise UserError(
                f"{path}: its docids ({docid_map.fingerprint[:12]}) are not those that the model "
                f"was trained on ({spec.docid_fingerprint[:12]})"
            )
        checkpoint, step = find_eval_checkpoint(path, spec.docid_fingerprint, step)
        return cls(
            spec,
            docid_map,
            load_tokenizer(path / "vocabulary" / "sentencepiece.model", words_only=spec.words_only),
            SavedParameters(checkpoint, spec.model, partitioner).weights,
            step,
            path / "corpus" / "corpus.jsonl",
            1 if partitioner is None else partitioner.mesh.size,
        )

    @functools.cached_property
    def _titles(self) -> dict[str, str]:
        return {d.doc_id: d.title for d in read_corpus(self._corpus_file).documents}

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

    @functools.cached_property
    def trie(self) -> Trie:
        """The valid docids, on the device."""
        return jax.device_put(Trie.from_docid_map(self.docid_map))

    def weights(self, precision: Precision | None = None) -> InferenceWeights:
        """The model, arranged for search; None for the precision that it was trained in.

        Raises:
          UserError: the checkpoint is damaged or has gone, or the devices' memory is too small.
        """
        with device_memory(self._devices):
            return self._weights(self.precision(precision))

    def precision(self, precision: Precision | None = None) -> Precision:
        """`precision`, or the one that the model was trained in."""
        return precision or self.spec.model.dtype  # pyright: ignore[reportReturnType]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - an index lives as long as its process
    def _weights(self, precision: Precision) -> InferenceWeights:
        return self._prepare(precision)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - an index lives as long as its process
    def searcher(self, config: SearchConfig, k: int) -> BeamSearch:
        """The search for `k` documents."""
        return BeamSearch(
            self.weights(config.precision),
            self.trie,
            beam=config.width(k),
            k=k,
            score=config.score,
        )

    def tokens(self, queries: Sequence[str]) -> np.ndarray:
        """Queries as source tokens [n, input length]."""
        return self.tokenizer.encode(queries, self.spec.input_length)

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
          UserError: `k` is below 1, a document of `only` is not in the index, or see `weights`.
        """
        if k < 1:
            raise UserError(f"k is {k}: at least 1 document is needed")
        with device_memory(self._devices):
            return self.searcher(config, k).search(
                self.tokens(queries),
                subset=None if only is None else self.trie.subset(self._rows(only)),
                exact=config.exact,
                most_beam=config.most_beam,
            )

    def _rows(self, doc_ids: Iterable[str]) -> np.ndarray:
        doc_ids = [doc_ids] if isinstance(doc_ids, str) else list(doc_ids)  # not its characters
        unknown = [doc_id for doc_id in doc_ids if doc_id not in self.docid_map.index_of]
        if unknown:
            others = f" (nor {len(unknown) - 1:,} others of those given)" if unknown[1:] else ""
            raise UserError(f"the document {unknown[0]!r} is not in the index{others}")
        return np.asarray([self.docid_map.index_of[doc_id] for doc_id in doc_ids], np.int64)

    def score_documents(self, queries: Sequence[str], config: SearchConfig) -> np.ndarray:
        """Log-probabilities of every document, by row of `docid_map` [queries, documents]."""
        weights = self.weights(config.precision)
        with device_memory(self._devices):
            return score_all(weights, self.docid_map, self.tokens(queries), config.score)

    def find_exactly(self, queries: Sequence[str], *, k: int, config: SearchConfig) -> SearchResult:
        """Like `find`, by scoring every document; the beams of `config` do not matter."""
        documents = self.docid_map.sorted_order  # equal scores stay in this order, as in a search
        scores = self.score_documents(queries, config)[:, documents]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return SearchResult(
            rows=documents[order],
            scores=np.take_along_axis(scores, order, axis=1),
            exact=np.ones(len(scores), bool),
            beam=np.full(len(scores), len(documents), np.int32),
        )

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
        return [
            [
                (self.docid_map.doc_ids[row], score)
                for row, score in zip(rows, scores, strict=True)
                if row >= 0
            ]
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
        return [
            [
                Result(
                    rank=rank,
                    doc_id=doc_id,
                    title=self._titles.get(doc_id, ""),
                    score=score,
                    docid=self.docid_map.docid_string(self.docid_map.index_of[doc_id]),
                )
                for rank, (doc_id, score) in enumerate(ranking, 1)
            ]
            for ranking in self.documents(found)
        ]

    def latency(
        self,
        queries: Sequence[str],
        *,
        k: int,
        config: SearchConfig,
        exactly: bool = False,
        most: int = 200,
    ) -> float:
        """Milliseconds per query, one query at a time from text to documents: the median.

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
        return float(np.median(seconds) * 1000) if seconds else 0.0
