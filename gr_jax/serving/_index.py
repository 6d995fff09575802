"""`Index`: a trained model directory that answers queries."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from gr_jax.corpus import read_corpus
from gr_jax.data import Tokenizer
from gr_jax.decoding import BeamSearch, score_all
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.files import atomic_file
from gr_jax.models import T5Config, count_parameters
from gr_jax.training import load_eval_parameters


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
        parameters: Any,
        step: int,
        corpus_file: Path,
    ):
        """See `load`."""
        self.spec = spec
        self.docid_map = docid_map
        self.tokenizer = tokenizer
        self.parameters = parameters
        self.step = step
        self._corpus_file = corpus_file

    @classmethod
    def load(cls, model_dir: str | Path) -> Self:
        """Loads the newest checkpoint of `model_dir`.

        Raises:
          UserError: nothing is trained there yet, a file is damaged, or parts do not belong
            together.
        """
        path = Path(model_dir).expanduser()
        spec = IndexSpec.load(path / "index.json")
        docid_map = DocidMap.load(path / "docids")
        if docid_map.fingerprint != spec.docid_fingerprint:
            raise UserError(
                f"{path}: its docids ({docid_map.fingerprint[:12]}) are not those that the model "
                f"was trained on ({spec.docid_fingerprint[:12]})"
            )
        parameters, step = load_eval_parameters(path, spec.docid_fingerprint)
        return cls(
            spec,
            docid_map,
            Tokenizer(path / "vocabulary" / "sentencepiece.model", words_only=spec.words_only),
            parameters,
            step,
            path / "corpus" / "corpus.jsonl",
        )

    @functools.cached_property
    def _titles(self) -> dict[str, str]:
        return {d.doc_id: d.title for d in read_corpus(self._corpus_file).documents}

    @property
    def parameter_count(self) -> int:
        """Number of scalars of the model."""
        return count_parameters(self.parameters)

    @property
    def nbytes(self) -> int:
        """Bytes of what answers queries: weights, trie and vocabulary."""
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(self.parameters))
        return weights + self.searcher(1, 1).trie.nbytes + self.tokenizer.path.stat().st_size

    @functools.lru_cache(maxsize=8)  # noqa: B019 - an index lives as long as its process
    def searcher(self, beam: int, k: int, batch_size: int = 32) -> BeamSearch:
        """The compiled search of one width."""
        return BeamSearch(self.spec.model, self.docid_map, beam=beam, k=k, batch_size=batch_size)

    def tokens(self, queries: Sequence[str]) -> np.ndarray:
        """Queries as source tokens [n, input length]."""
        return self.tokenizer.encode(queries, self.spec.input_length)

    def rank(self, queries: Sequence[str], *, k: int, beam: int) -> list[list[tuple[str, float]]]:
        """Ranked (document, log-probability) lists, best first."""
        result = self.searcher(max(beam, k), k).search(self.parameters, self.tokens(queries))
        return [self._documents(rows, scores) for rows, scores in zip(*result[:2], strict=True)]

    def rank_exactly(self, queries: Sequence[str], *, k: int) -> list[list[tuple[str, float]]]:
        """Like `rank`, by scoring every document of the corpus."""
        scores = score_all(self.spec.model, self.parameters, self.docid_map, self.tokens(queries))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [self._documents(rows, line[rows]) for rows, line in zip(order, scores, strict=True)]

    def _documents(self, rows: np.ndarray, scores: np.ndarray) -> list[tuple[str, float]]:
        return [
            (self.docid_map.doc_ids[row], float(score))
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            if row >= 0
        ]

    def search(self, query: str, *, k: int = 10, beam: int = 20) -> list[Result]:
        """The best `k` documents for one query."""
        return [
            Result(
                rank=rank,
                doc_id=doc_id,
                title=self._titles.get(doc_id, ""),
                score=score,
                docid=self.docid_map.docid_string(self.docid_map.index_of[doc_id]),
            )
            for rank, (doc_id, score) in enumerate(self.rank([query], k=k, beam=beam)[0], 1)
        ]

    def latency(self, queries: Sequence[str], *, k: int, beam: int, most: int = 200) -> float:
        """Milliseconds per query, one query at a time from text to documents: the median.

        Every query is answered once before it is timed, so that nothing is compiled in between.
        """
        queries = list(queries[:most])
        seconds = []
        for timed in (False, True):
            for query in queries:
                start = time.perf_counter()
                self.rank([query], k=k, beam=beam)
                if timed:
                    seconds.append(time.perf_counter() - start)
        return float(np.median(seconds) * 1000) if seconds else 0.0
