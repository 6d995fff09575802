"""What a search is asked, checked on the host before a program gathers by it unchecked."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gr_jax.decoding._trie import Subset, Trie
from gr_jax.errors import UserError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """An argument as an int: NumPy's are ones, `True` and `2.0` are not.

    Raises:
      UserError: not a whole number, or a smaller one than `least`.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UserError(f"{name} is {value!r}: a whole number of at least {least} is needed")
    return number


def checked_source(tokens: Any, vocabulary: int) -> Int[np.ndarray, "n s"]:
    """Queries as an array of token ids.

    Raises:
      UserError: not [queries, length], or a token that the model does not have.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2:
        raise UserError(
            f"source tokens are of shape {list(tokens.shape)}, not [queries, length]: put a single "
            "query into a list"
        )
    if tokens.size and tokens.dtype.kind not in "iu":
        raise UserError(f"source tokens are {tokens.dtype}: whole numbers are needed")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise UserError(
            f"the source token {wrong} is not one of the model's {vocabulary}: encode queries with "
            "the tokenizer that it was trained with"
        )
    return tokens.astype(np.int32)


def groups_of(
    subset: Subset | None, group: Any, trie: Trie, queries: int
) -> Int[np.ndarray, " n"] | None:
    """The group of each query, None without a subset.

    Raises:
      UserError: groups without a subset, a subset of another trie, or groups that are not its own.
    """
    if subset is None:
        if group is not None:
            raise UserError("group names parts of a subset, and there is none: give subset= too")
        return None
    subset.check(trie)
    if group is None:
        if subset.groups > 1:
            raise UserError(f"the subset has {subset.groups} groups: give each query's with group=")
        return np.zeros(queries, np.int32)
    group = np.asarray(group)
    if group.shape != (queries,) or (queries and group.dtype.kind not in "iu"):
        raise UserError(
            f"group is {group.dtype} {list(group.shape)}: a whole number for each of {queries} "
            "queries is needed"
        )
    outside = (group < 0) | (group >= subset.groups)
    if outside.any():
        raise UserError(
            f"group {group[outside][0]} is not one of the subset's, 0 to {subset.groups - 1}"
        )
    return group.astype(np.int32)


def refuse_infinite(scores: Float[np.ndarray, "n k"], dtype: str) -> None:
    """Refuses to answer where a model's scores are not numbers.

    Args:
      scores: of each query; NaN, or infinite where no document may score so.
      dtype: of the model's activations.

    Raises:
      UserError: a query has such a score.
    """
    bad = np.isnan(scores).any(axis=1)
    if bad.any():
        other = "" if dtype == "float32" else f", or {dtype} overflows: search it in float32"
        raise UserError(
            f"the model's scores are not finite for {bad.sum()} of {len(bad)} queries: the "
            f"checkpoint has diverged: use an earlier one{other}"
        )
