"""`SearchConfig`: how an index is searched."""

from __future__ import annotations

import dataclasses
from typing import get_args

from gr_jax.decoding import Score
from gr_jax.decoding._arguments import whole_number
from gr_jax.errors import UserError
from gr_jax.models import PRECISIONS, Precision

DEFAULT_SCORE: Score = "children"
"""The normalisation where none is asked for: in searches, in evaluations, on the command line."""
DEFAULT_MOST_BEAM = 1024
"""The width up to which a search looks for proof where no other is given."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes:
      beam: live prefixes per query; searches for more documents than this are as wide as those.
      score: over what each step is normalised; see `BeamSearch`.
      precision: of the model; None for the one that it was trained in. See `prepare_inference`.
      exact: ask again, with a beam twice as wide, what is not certainly exact.
      most_beam: the width that `exact` does not go beyond.
    """

    beam: int = 100
    score: Score = DEFAULT_SCORE
    precision: Precision | None = None
    exact: bool = False
    most_beam: int = DEFAULT_MOST_BEAM

    def __post_init__(self):
        for name in ("beam", "most_beam"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        scores = get_args(Score)
        if self.score not in scores:
            raise UserError(f"score is {self.score!r}: choose one of {', '.join(scores)}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise UserError(
                f"precision is {self.precision!r}: choose one of {', '.join(PRECISIONS)}, or None "
                "for the one that the model was trained in"
            )

    def width(self, k: int) -> int:
        """The beam of a search for `k` documents: narrower ones might not find as many."""
        return max(self.beam, k)
