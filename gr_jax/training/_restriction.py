"""The tokens that a training softmax is over: the normalisers of the decoder's scores.

A model is trained with the softmax that it is searched with: `full` normalises over the whole
target vocabulary and needs nothing from here; `level` over the codes of the level, and the end
token after the first level; `children` over the tokens that follow the prefix in some docid.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, Protocol, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gr_jax.docids import EOS_ID, DocidMap, DocidVocabulary

Softmax = Literal["full", "level", "children"]
SOFTMAXES: tuple[Softmax, ...] = get_args(Softmax)


class Restriction(Protocol):
    """A pytree that knows over which tokens each target position is normalised."""

    def allowed(
        self, targets: Int[Array, "b t"], segments: Int[Array, "b t"], vocab: int
    ) -> Bool[Array, "b t v"]:
        """The tokens over which each target is normalised; never none, padding included.

        Args:
          targets: docids of the map as tokens, several to a row; 0 is padding.
          segments: which of the row's docids a target belongs to, from 1; 0 is padding.
          vocab: width of the logits.
        """
        ...


def make_restriction(softmax: Softmax, docid_map: DocidMap | None) -> Restriction | None:
    """The restriction of `softmax` to the docids of a map; None for `full`.

    Raises:
      ValueError: a restricted softmax without a map.
    """
    if softmax == "full":
        return None
    if docid_map is None:
        raise ValueError(f"softmax={softmax!r} needs the docid map")
    if softmax == "level":
        return LevelRestriction(docid_map.vocabulary)
    return ChildrenRestriction.from_docid_map(docid_map)


def _positions(segments: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Each target's position in its docid; 0 in padding."""
    place = jnp.arange(segments.shape[1], dtype=jnp.int32)
    opens = segments != _shifted(segments)
    start = jax.lax.cummax(jnp.where(opens, place, 0), axis=1)
    return jnp.where(segments > 0, place - start, 0)


def _shifted(x: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """What stands before each position; 0 before the first."""
    return jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["vocabulary"])
@dataclasses.dataclass(frozen=True)
class LevelRestriction:
    """The codes of the target's level, and the end token, if there is one, after the first level.

    Attributes:
      vocabulary: of the docid tokens.
    """

    vocabulary: DocidVocabulary

    def allowed(
        self, targets: Int[Array, "b t"], segments: Int[Array, "b t"], vocab: int
    ) -> Bool[Array, "b t v"]:
        """See `Restriction`."""
        position = _positions(segments)[..., None]
        # after the last level no code is left: an empty range
        low = np.append(self.vocabulary.offsets, 0).astype(np.int32)
        high = np.append(self.vocabulary.offsets + self.vocabulary.level_sizes, 0).astype(np.int32)
        token = jnp.arange(vocab, dtype=jnp.int32)
        allowed = (token >= jnp.asarray(low)[position]) & (token < jnp.asarray(high)[position])
        if self.vocabulary.eos:
            allowed |= (token == EOS_ID) & (position > 0)
        return allowed


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["of_root", "token", "first_child"],
    meta_fields=["vocabulary", "fan_out"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class ChildrenRestriction:
    """The tokens that follow the target's prefix in some docid.

    The nodes are the distinct prefixes of all docids as tokens, breadth first and each level in
    lexicographic order; node 0 is the root. So the children of node `n` are the nodes
    `first_child[n]` to `first_child[n + 1]`, and two flat arrays hold the tree.

    The root is looked up and masked as a slice of the vocabulary, the rest gathers the children of
    a node, `fan_out` at most: atomic docids, which are all children of the root, gather nothing.

    Attributes:
      of_root: the root's child for each code of the first level; 0 where there is none.
      token: the last token of each node [nodes]; 0 for the root.
      first_child: [nodes + 1].
      vocabulary: of the docid tokens.
      fan_out: children of a node other than the root, at most.
    """

    of_root: Array
    token: Array
    first_child: Array
    vocabulary: DocidVocabulary
    fan_out: int

    @classmethod
    def from_docid_map(cls, docid_map: DocidMap) -> Self:
        """Builds the tree on the host, in time linear in the map's tokens (after sorting)."""
        table = docid_map.tokens[docid_map.sorted_order]  # [documents, tokens]
        shared = docid_map.shared_levels  # with the docid before
        distinct = shared < len(docid_map.level_sizes)
        tokens, starts, before = [np.zeros(1, np.int32)], [np.zeros(1, int)], []
        for position in range(table.shape[1]):
            opens = distinct & (shared <= position) & (table[:, position] > 0)
            starts.append(np.flatnonzero(opens))  # the first row of each node
            before.append(np.cumsum(opens) - opens)  # nodes opened above each row
            tokens.append(table[starts[-1], position])
        ends = np.cumsum([len(t) for t in tokens])  # node number at which each depth ends
        first_child = [ends[depth] + above[starts[depth]] for depth, above in enumerate(before)] + [
            np.full(len(tokens[-1]) + 1, ends[-1])
        ]
        first_child = np.concatenate(first_child).astype(np.int32)
        vocabulary = docid_map.vocabulary
        of_root = np.zeros(vocabulary.level_sizes[0], np.int32)
        of_root[tokens[1] - vocabulary.offsets[0]] = 1 + np.arange(len(tokens[1]))
        return cls(
            of_root=of_root,  # pyright: ignore[reportArgumentType]
            token=np.concatenate(tokens).astype(np.int32),  # pyright: ignore[reportArgumentType]
            first_child=first_child,  # pyright: ignore[reportArgumentType]
            vocabulary=vocabulary,
            fan_out=int(np.diff(first_child)[1:].max(initial=0)),
        )

    def allowed(
        self, targets: Int[Array, "b t"], segments: Int[Array, "b t"], vocab: int
    ) -> Bool[Array, "b t v"]:
        """See `Restriction`."""
        position = _positions(segments)
        low = int(self.vocabulary.offsets[0])
        rest = vocab - low - len(self.of_root)
        allowed = (position == 0)[..., None] & jnp.pad(self.of_root > 0, (low, rest))
        if not self.fan_out:
            return allowed
        child, exists = self._children(self._nodes(targets, position))
        exists &= (position > 0)[..., None]
        token = jnp.where(exists, self.token[child], vocab)  # out of bounds: dropped

        def mark(line: Bool[Array, " v"], at: Int[Array, " k"]) -> Bool[Array, " v"]:
            return line.at[at].set(True, mode="drop")

        # a mask, and not the logits of the children: its gradient needs no scatter, and the loss is
        # that of `full` with some entries left out
        return jax.vmap(jax.vmap(mark))(allowed, token)

    def _children(
        self, node: Int[Array, "b t"]
    ) -> tuple[Int[Array, "b t k"], Bool[Array, "b t k"]]:
        """The children of each node, and which of the `fan_out` places hold one."""
        child = self.first_child[node][..., None] + jnp.arange(self.fan_out, dtype=jnp.int32)
        exists = child < self.first_child[node + 1][..., None]
        return jnp.where(exists, child, 0), exists

    def _nodes(self, targets: Int[Array, "b t"], position: Int[Array, "b t"]) -> Int[Array, "b t"]:
        """The node of what stands before each target in its docid, one level of all at a time."""
        last = _shifted(targets)
        code = jnp.clip(last - int(self.vocabulary.offsets[0]), 0, len(self.of_root) - 1)
        node = jnp.where(position == 1, self.of_root[code], 0)
        for depth in range(2, self.vocabulary.max_tokens):
            child, exists = self._children(_shifted(node))
            taken = exists & (self.token[child] == last[..., None])
            below = jnp.where(taken, child, 0).sum(axis=-1)  # one child at most has the token
            node = jnp.where(position == depth, below, node)
        return node
