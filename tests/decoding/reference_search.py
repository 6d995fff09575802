"""Slow, plain twins of what `gr_jax.decoding` does, and the random cases to compare them on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from gr_jax.decoding import TrieShape
from gr_jax.docids import DocidMap, DocidVocabulary

LEVELS, CODES, MOST = 5, 6, 24
LEVEL_SIZES = (CODES,) * LEVELS
VOCAB = 2 + LEVELS * CODES
FULL = 10**6  # a beam that prunes nothing


def roomy_shape(vocabulary: DocidVocabulary) -> TrieShape:
    """One shape that every random case fits, so that few programs are compiled."""
    return TrieShape(
        vocabulary=vocabulary,
        nodes=(CODES, *(MOST,) * (LEVELS - 1)),
        branches=(CODES, *(MOST,) * (LEVELS - 2)),
        fan_outs=LEVEL_SIZES,
        ends=(True,) * LEVELS,
        tail_start=1,
        docids=MOST,
        documents=MOST,
        unique=False,
    )


def make_map(docids) -> DocidMap:
    codes = np.full((len(docids), LEVELS), -1)
    for row, docid in zip(codes, docids, strict=True):
        row[: len(docid)] = docid
    return DocidMap(tuple(f"d{i}" for i in range(len(docids))), codes, LEVEL_SIZES)


@st.composite
def docid_lists(draw, prefix_free: bool | None = None):
    """1 to 24 docids of 1 to 5 codes, some twice; prefix-free or not as asked."""
    codes = draw(st.integers(1, CODES))
    code = st.integers(0, codes - 1)
    docids = draw(
        st.lists(
            st.lists(code, min_size=1, max_size=LEVELS).map(tuple), min_size=1, max_size=MOST - 4
        )
    )
    if prefix_free is None:
        prefix_free = draw(st.booleans())
    if prefix_free:
        if draw(st.booleans()):  # all of one length
            docids = [(d * LEVELS)[:4] for d in docids]
        docids = [d for d in docids if not any(is_prefix(d, e) for e in docids)]
    elif not any(is_prefix(d, e) for d in docids for e in docids):
        docids = [*docids, (*docids[0], 0)[:LEVELS], docids[0][:1], (*docids[0][:1], 0)]
    docids += draw(st.lists(st.sampled_from(docids), max_size=1))
    return draw(st.permutations(docids))


def is_prefix(a, b) -> bool:
    return len(a) < len(b) and b[: len(a)] == a


# --- a model without a network: logits are a hash of the prefix ---------------------------------


def _mix(x):
    with np.errstate(over="ignore"):
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
        return x ^ (x >> 16)


def extend(state, token):
    """The hash of a prefix and one more token (arrays of uint32; numpy or jax)."""
    return _mix(state * np.uint32(1664525) + token + np.uint32(1013904223))


def hash_logits(state, scale):
    """[...] -> [..., VOCAB], between 0 and `scale`; the same floats in numpy and jax."""
    v = np.arange(VOCAB, dtype=np.uint32) * np.uint32(2654435761)
    return (_mix(state[..., None] + v) >> 8).astype(np.float32) * np.float32(2**-24) * scale


class HashModel:
    """`Model` of `_core`; its state is the hash of each beam's prefix, its last token excepted."""

    def __init__(self, scale):
        self.scale = scale

    def decode(self, state, tokens, parents, step):
        if parents is not None:
            state = jnp.take_along_axis(state, parents, axis=1)
        hidden = []
        for i in range(tokens.shape[2]):
            if step + i:
                state = extend(state, tokens[:, :, i].astype(jnp.uint32))
            hidden.append(state)
        return jnp.stack(hidden, axis=2), hidden[0]

    def keep(self, state, new, parents, step):
        return new

    def logits(self, hidden, start, size):
        end = None if size is None else start + size
        return hash_logits(hidden, self.scale)[..., start:end]

    def log_norm(self, hidden):
        return jax.nn.logsumexp(hash_logits(hidden, self.scale), axis=-1)


def hash_logits_of(seed: int, scale: float):
    """The same model for `reference_search`: codes of a prefix -> logits."""

    def logits(prefix):
        state = np.array(seed, np.uint32)
        with np.errstate(over="ignore"):
            for level, code in enumerate(prefix):
                state = extend(state, np.uint32(2 + CODES * level + code))
            return hash_logits(state, np.float32(scale)).astype(np.float64)

    return logits


# --- beam search over a dict, in float64 ----------------------------------------------------------


def log_sum_exp(values) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def reference_search(docids, logits_of, *, beam, k, score, eos):
    """Ranked `(score, row)` of the documents, and whether anything was pruned.

    Under `children`, a prefix with one docid below it is that docid: nothing is left to choose.
    """
    ends = set(docids)
    below: dict[tuple, set] = {}
    for docid in ends:
        for i in range(len(docid) + 1):
            below.setdefault(docid[:i], set()).add(docid)
    children: dict[tuple, set] = {}
    for docid in docids:
        for i in range(len(docid)):
            children.setdefault(docid[:i], set()).add(docid[i])
    live, pool, pruned = [(0.0, ())], [], False
    for level in range(LEVELS + 1):
        grown = []
        for total, prefix in live:
            logits = logits_of(prefix)
            tokens = {2 + CODES * level + c: c for c in sorted(children.get(prefix, ()))}
            may_end = eos and prefix in ends
            if score == "full":
                over = range(VOCAB)
            elif score == "level":
                over = [*range(2 + CODES * level, 2 + CODES * (level + 1))] * (level < LEVELS)
                over += [1] * (eos and level > 0)
            else:
                over = [*tokens] + [1] * may_end
            norm = log_sum_exp([logits[v] for v in over])
            if may_end:
                pool.append((total + logits[1] - norm, prefix))
            for token, code in tokens.items():
                longer = (*prefix, code)
                grown.append((total + logits[token] - norm, longer))
                ended = longer not in children
                if score == "children":
                    if len(below[longer]) == 1:
                        pool.append((grown.pop()[0], *below[longer]))
                elif ended and (not eos or (score == "level" and len(longer) == LEVELS)):
                    pool.append(grown.pop())
        grown.sort(key=lambda h: (-h[0], h[1]))
        pruned |= len(grown) > beam
        live = grown[:beam]
    pool.sort(key=lambda h: (-h[0], h[1]))
    ranked = [(s, row) for s, docid in pool for row, d in enumerate(docids) if d == docid]
    return ranked[:k], pruned
