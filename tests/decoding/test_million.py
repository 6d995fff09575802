"""A million decoded docids: none invalid, none twice (`make test-slow`)."""

import jax
import numpy as np
import pytest

from gr_jax.decoding import BeamSearch, Trie
from gr_jax.decoding._core import SCORES
from gr_jax.docids import DocidMap
from gr_jax.models import T5Config, init_parameters, prepare_inference

DOCUMENTS, LEVELS, CODES, BEAM, QUERIES = 200_000, 6, 64, 100, 3_400


@pytest.mark.slow
def test_a_million_decoded_docids_exist_and_differ():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (DOCUMENTS, LEVELS), np.int32)
    # mixed lengths, docids that extend others, and documents that share one
    codes[np.arange(LEVELS) >= rng.integers(2, LEVELS + 1, DOCUMENTS)[:, None]] = -1
    names = tuple(map(str, range(DOCUMENTS)))
    docid_map = DocidMap(names, codes, (CODES,) * LEVELS)
    assert docid_map.vocabulary.eos and not docid_map.unique
    config = T5Config(
        vocab_size=100,
        target_vocab_size=docid_map.vocabulary.size,
        emb_dim=32,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    parameters = jax.jit(init_parameters, static_argnums=0)(config, jax.random.key(0))
    weights = prepare_inference(config, parameters)
    trie = Trie.from_docid_map(docid_map)
    decoded = 0
    for score in SCORES:
        search = BeamSearch(weights, trie, beam=BEAM, k=BEAM, score=score)
        rows, scores, _, _ = search.search(rng.integers(1, 100, (QUERIES, 12)))
        assert ((rows >= 0) & (rows < DOCUMENTS)).all()
        assert all(len(set(line)) == BEAM for line in rows.tolist())
        assert np.isfinite(scores).all() and (scores <= 0).all() and (np.diff(scores) <= 0).all()
        decoded += rows.size
    assert decoded > 1_000_000
