"""The model of an index: weights and searches, made once and shared by all threads."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Hashable

from gr_jax.decoding import BeamSearch
from gr_jax.models import InferenceWeights, Precision
from gr_jax.serving._corpus import IndexedCorpus

_PRECISIONS = 2  # held at a time
_SEARCHES = 8  # of each precision and corpus


@dataclasses.dataclass(frozen=True)
class _Held:
    """Weights, and what holds on to them: forgotten together."""

    weights: InferenceWeights
    searches: weakref.WeakKeyDictionary[IndexedCorpus, dict[Hashable, BeamSearch]]


class Model:
    """Weights in a few precisions; one thread makes a part, the others wait for it."""

    def __init__(self, prepare: Callable[[Precision], InferenceWeights]):
        """`prepare` makes the weights of a precision."""
        self._prepare = prepare
        self._lock = threading.RLock()
        self._held: dict[Precision, _Held] = {}  # the last one was used last

    def weights(self, precision: Precision) -> InferenceWeights:
        """Of a precision; those used least recently are forgotten where there are too many."""
        return self._of(precision).weights

    def search(
        self,
        precision: Precision,
        corpus: IndexedCorpus,
        settings: Hashable,
        make: Callable[[InferenceWeights], BeamSearch],
    ) -> BeamSearch:
        """The search of a corpus with these settings, made of the weights where it is not held."""
        with self._lock:
            held = self._of(precision)
            searches = held.searches.setdefault(corpus, {})
            found = searches.pop(settings, None) or make(held.weights)
            while len(searches) >= _SEARCHES:
                del searches[next(iter(searches))]
            searches[settings] = found
            return found

    def _of(self, precision: Precision) -> _Held:
        with self._lock:
            held = self._held.pop(precision, None)
            while len(self._held) >= _PRECISIONS:  # before the new ones need room
                del self._held[next(iter(self._held))]
            if held is None:
                held = _Held(self._prepare(precision), weakref.WeakKeyDictionary())
            self._held[precision] = held
            return held
