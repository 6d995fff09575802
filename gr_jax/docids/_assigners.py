"""Methods that give every document a docid. A new one is one more class with `assign`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from gr_jax.corpus import Corpus
from gr_jax.docids._docid_map import DocidMap
from gr_jax.docids._embeddings import load_embeddings, tfidf_svd_embeddings
from gr_jax.errors import UserError

# Centroids of a larger cluster are fitted on a sample of this size (Pradeep et al. 2023, 100k).
_FIT_SAMPLE = 100_000


class DocidAssigner(Protocol):
    """What a docid scheme implements."""

    def check(self, corpus: Corpus) -> None:
        """Raises UserError where `assign` would, but at once."""
        ...

    def assign(self, corpus: Corpus) -> DocidMap:
        """Gives every document of `corpus` a docid."""
        ...


@dataclasses.dataclass(frozen=True)
class AtomicDocids:
    """One token per document: a target vocabulary of the corpus's size (Tay et al. 2022)."""

    def check(self, corpus: Corpus) -> None:
        """Every corpus will do."""

    def assign(self, corpus: Corpus) -> DocidMap:
        """Numbers the documents in corpus order."""
        return DocidMap(
            doc_ids=tuple(d.doc_id for d in corpus.documents),
            codes=np.arange(len(corpus), dtype=np.int32)[:, None],
            level_sizes=(len(corpus),),
            provenance={"method": "atomic", "corpus": corpus.fingerprint},
        )


@dataclasses.dataclass(frozen=True)
class HierarchicalKMeans:
    """Semantic docids: a tree of k-means clusters over document embeddings (Tay et al. 2022, 3.2).

    Clusters are balanced by capacity, so that every docid has the same number of levels and the
    last level numbers the documents of a leaf without collisions.

    Attributes:
      branching: codes per level, first level first. None chooses `levels` equal levels just large
        enough for the corpus.
      levels: number of levels when `branching` is None.
      slack: room to leave when `branching` is None: the tree has at least this many times as many
        leaves as there are documents, so that clusters may differ in size.
      embeddings: a `.npy` file [documents, dimensions]; None embeds by TF-IDF and SVD.
      dimensions: width of the TF-IDF + SVD embedding.
      seed: of the SVD and of every k-means.
    """

    branching: tuple[int, ...] | None = None
    levels: int = 3
    slack: float = 2.0
    embeddings: str | None = None
    dimensions: int = 128
    seed: int = 0

    def _branching(self, documents: int) -> tuple[int, ...]:
        if self.branching is not None:
            branching = tuple(int(b) for b in self.branching)
        elif self.levels < 1:
            raise UserError(f"HierarchicalKMeans.levels is {self.levels}: at least 1 is needed")
        else:
            # the last level numbers a leaf's documents and needs no slack of its own
            width = math.ceil((documents * self.slack) ** (1 / self.levels) - 1e-9)
            branching = (max(width, 1),) * self.levels
        if not branching or min(branching) < 1:
            raise UserError(f"HierarchicalKMeans.branching is {branching}: every level needs >= 1")
        if math.prod(branching) < documents:
            raise UserError(
                f"HierarchicalKMeans.branching {branching} has room for {math.prod(branching)} "
                f"documents, the corpus has {documents}: add a level or widen one"
            )
        return branching

    def check(self, corpus: Corpus) -> None:
        """Refuses a tree that is too small, or embeddings that do not fit the corpus."""
        if not 0 <= self.seed < 2**32 - 100:  # numpy's limit, less one for each level
            raise UserError(f"HierarchicalKMeans.seed is {self.seed}: 0 to 2**32 - 100 will do")
        self._branching(len(corpus))
        if self.embeddings is not None:
            load_embeddings(Path(self.embeddings), len(corpus))

    def _embed(self, corpus: Corpus) -> Float[np.ndarray, "n d"]:
        if self.embeddings is not None:
            return load_embeddings(Path(self.embeddings), len(corpus))
        return tfidf_svd_embeddings(corpus, dimensions=self.dimensions, seed=self.seed)

    def assign(self, corpus: Corpus) -> DocidMap:
        """Clusters the corpus and numbers the leaves.

        Raises:
          UserError: the tree is too small for the corpus, or the embeddings do not fit it.
        """
        import sklearn.cluster
        import sklearn.decomposition  # noqa: F401  only what is loaded by then can be limited
        from threadpoolctl import threadpool_limits

        self.check(corpus)
        branching = self._branching(len(corpus))
        codes = np.zeros((len(corpus), len(branching)), np.int32)
        # one thread: sums in one order, hence the same clusters every time
        with threadpool_limits(1):
            embeddings = self._embed(corpus)
            _split(embeddings, np.arange(len(corpus)), branching, 0, codes, self.seed)
        return DocidMap(
            doc_ids=tuple(d.doc_id for d in corpus.documents),
            codes=codes,
            level_sizes=branching,
            provenance={"method": "hierarchical_kmeans", "corpus": corpus.fingerprint}
            | dataclasses.asdict(self)
            | {"branching": branching},
        )


def _split(
    embeddings: Float[np.ndarray, "n d"],
    members: Int[np.ndarray, " m"],
    branching: tuple[int, ...],
    level: int,
    codes: Int[np.ndarray, "n levels"],
    seed: int,
) -> None:
    """Fills `codes[members, level:]` by clustering `members` into `branching[level]` parts."""
    if level == len(branching) - 1:
        codes[members, level] = _order_of(embeddings[members])
        return
    capacity = math.prod(branching[level + 1 :])
    labels = _balanced_kmeans(embeddings[members], branching[level], capacity, seed)
    codes[members, level] = labels
    for cluster in np.unique(labels):
        inside = members[labels == cluster]
        _split(embeddings, inside, branching, level + 1, codes, seed + 1)


def _order_of(points: Float[np.ndarray, "m d"]) -> Int[np.ndarray, " m"]:
    """Numbers the documents of a leaf along their main direction: neighbours get close codes."""
    centred = points - points.mean(axis=0)
    if len(points) < 3 or not centred.any():
        return np.arange(len(points))
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    direction *= np.sign(direction[np.argmax(np.abs(direction))])
    return np.argsort(np.argsort(centred @ direction, kind="stable"), kind="stable")


def _balanced_kmeans(
    points: Float[np.ndarray, "m d"], clusters: int, capacity: int, seed: int
) -> Int[np.ndarray, " m"]:
    """k-means labels with at most `capacity` points in each of at most `clusters` clusters."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(points, axis=0))
    clusters = min(clusters, len(points))
    fitted = min(clusters, distinct)
    sample = points
    if len(points) > _FIT_SAMPLE:
        rows = np.random.default_rng(seed).choice(len(points), _FIT_SAMPLE, replace=False)
        sample = points[np.sort(rows)]
    centres = KMeans(fitted, n_init="auto", random_state=seed).fit(sample).cluster_centers_
    if fitted < clusters:  # identical documents: their copies of a centre only add room
        centres = centres[np.arange(clusters) % fitted]
    distance = (
        (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)[None]
    )  # [points, clusters]
    return _assign_with_capacity(distance, capacity)


def _assign_with_capacity(
    distance: Float[np.ndarray, "m k"], capacity: int
) -> Int[np.ndarray, " m"]:
    """Each point to its nearest cluster with room.

    When a cluster is over-full, the points that lose least by moving move on, each to the nearest
    cluster that still has room.
    """
    labels = distance.argmin(axis=1)
    counts = np.bincount(labels, minlength=distance.shape[1])
    if counts.max() <= capacity:
        return labels
    open_distance = distance.copy()
    while (over := counts > capacity).any():
        # every full cluster is closed to newcomers; its members stay or leave, none come
        open_distance[:, counts >= capacity] = np.inf
        cluster = int(np.argmax(over))
        inside = np.flatnonzero(labels == cluster)
        regret = open_distance[inside].min(axis=1) - distance[inside, cluster]
        leaving = inside[np.argsort(regret, kind="stable")[: counts[cluster] - capacity]]
        for point in leaving:
            target = int(open_distance[point].argmin())
            labels[point] = target
            counts[target] += 1
            counts[cluster] -= 1
            if counts[target] >= capacity:
                open_distance[:, target] = np.inf
    return labels
