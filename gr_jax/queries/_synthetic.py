"""`SyntheticQueries`: how many, of which kinds, and the text of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from gr_jax.corpus import Corpus
from gr_jax.errors import UserError
from gr_jax.queries._samplers import Samplers
from gr_jax.queries._tables import NONE, WordTables

_DEFAULT_MIX = (
    ("terms", 0.3),
    ("asked", 0.2),
    ("skeleton", 0.3),
    ("span", 0.05),
    ("cloze", 0.1),
    ("sentence", 0.05),
)
_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class SyntheticQueries:
    """Sampled pseudo-queries, the same for the same corpus, training queries and seed.

    Attributes:
      per_document: how many for each document.
      mix: (sampler, weight) pairs; samplers that need training queries are passed over where there
        are none.
      most_terms: content words of a `terms` query at most; at least 2.
      title: probability that a query names the document's title.
      variant: probability that a word becomes another of its family.
      drop: probability that a word is left out.
      noise: expected number of foreign words per query.
      seed: of the samples.
    """

    per_document: int = 300
    mix: tuple[tuple[str, float], ...] = _DEFAULT_MIX
    most_terms: int = 10
    title: float = 0.2
    variant: float = 0.1
    drop: float = 0.03
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self):
        known = {name for name, _ in _DEFAULT_MIX}
        for name, weight in self.mix:
            if name not in known or not weight >= 0:
                raise UserError(
                    f"SyntheticQueries.mix has {name!r}: {weight}; samplers are "
                    f"{', '.join(sorted(known))}, weights at least 0"
                )
        for name in ("per_document", "noise", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"SyntheticQueries.{name} is {getattr(self, name)}: at least 0")
        if self.most_terms < 2:
            raise UserError(f"SyntheticQueries.most_terms is {self.most_terms}: at least 2")
        for name in ("title", "variant", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"SyntheticQueries.{name} is {getattr(self, name)}: 0 to 1")

    def generate(
        self, corpus: Corpus, training: Iterable[tuple[str, int]] = ()
    ) -> Iterator[tuple[str, int]]:
        """Yields (query text, document row), each document `per_document` times, in random order.

        Args:
          corpus: the documents.
          training: real queries as (text, document row), to learn from how people ask.

        Raises:
          UserError: an unknown sampler, or none that this corpus can have.
        """
        tables = WordTables(corpus, training)
        samplers = Samplers.of(tables, self.seed, most_terms=self.most_terms)
        available = samplers.by_name
        mix = [(name, weight) for name, weight in self.mix if name in available and weight > 0]
        if not mix:
            raise UserError(
                "SyntheticQueries.mix names no sampler that works without training queries: "
                f"add one of {', '.join(sorted(available))}"
            )
        names = [name for name, _ in mix]
        weights = np.array([weight for _, weight in mix])
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(np.repeat(np.arange(len(corpus)), self.per_document))
        kinds = rng.choice(len(names), len(rows), p=weights / weights.sum())
        vocabulary = np.array([*tables.vocabulary, ""], dtype=object)  # id -1 is the last: ""
        for start in range(0, len(rows), _BATCH):
            for kind, name in enumerate(names):
                inside = slice(start, start + _BATCH)
                mine = rows[inside][kinds[inside] == kind]
                if not len(mine):
                    continue
                slots = available[name](rng, mine)
                slots = samplers.vary(
                    rng,
                    mine,
                    slots,
                    title=self.title,
                    variant=self.variant,
                    drop=self.drop,
                    noise=self.noise,
                )
                for row, ids in zip(mine.tolist(), slots, strict=True):
                    text = " ".join(vocabulary[ids[ids != NONE]])
                    if text:
                        yield text, row
