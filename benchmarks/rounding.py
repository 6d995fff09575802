"""How far a search's scores are from the oracle's, and what a certificate is worth, per precision.

    python -m benchmarks.rounding

A peaky random model (weights doubled) over random docids of three codes. One JSON line per
precision and beam: the share of queries that were certified; of those, the share whose ten
documents the oracle (`score_all` in the same precision) has in another order, and has others among;
the largest log-probability (nats) by which the oracle's tenth document beats the worst one found;
and the mean and the largest distance of a score from the oracle's and from the float32 oracle's. No
timing.
"""

from __future__ import annotations

import argparse
import json
import sys

import jax
import numpy as np

from gr_jax.decoding import BeamSearch, score_all
from gr_jax.docids import DocidMap
from gr_jax.models import PRECISIONS, T5Config, init_parameters, prepare_inference

CODES, LEVELS, DRAWN, K = 12, 3, 700, 10
MODEL = T5Config(
    vocab_size=400,
    target_vocab_size=64,
    emb_dim=64,
    num_heads=4,
    head_dim=16,
    mlp_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=2,
)


def main(argv: list[str] | None = None) -> int:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--beams", nargs="+", type=int, default=[10, 40])
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--scale", type=float, default=2.0, help="of the random weights")
    options = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, CODES, (DRAWN, LEVELS)), axis=0)
    docids = DocidMap(tuple(map(str, range(len(codes)))), codes, (CODES,) * LEVELS)
    source = rng.integers(1, MODEL.vocab_size, (options.queries, 12))
    parameters = jax.tree.map(
        lambda x: x * options.scale, init_parameters(MODEL, jax.random.key(0))
    )
    truth = score_all(prepare_inference(MODEL, parameters, "float32"), docids, source)
    for precision in options.precisions:
        weights = prepare_inference(MODEL, parameters, precision)
        oracle = score_all(weights, docids, source)
        best = np.argsort(-oracle, axis=1, kind="stable")[:, :K]
        for beam in options.beams:
            found = BeamSearch(weights, docids, beam=beam, k=K).search(source)
            sure, rows = found.exact, found.rows
            there = rows >= 0
            of_found = np.take_along_axis(oracle, np.maximum(rows, 0), axis=1)
            tenth = np.take_along_axis(oracle, best, axis=1)[:, -1]
            away = np.abs(found.scores - of_found)[there]
            away32 = np.abs(found.scores - np.take_along_axis(truth, np.maximum(rows, 0), 1))[there]
            line = {
                "precision": precision,
                "beam": beam,
                "certified": sure.mean(),
                "other_order": (rows != best).any(axis=1)[sure].mean(),
                "other_documents": (np.sort(rows) != np.sort(best)).any(axis=1)[sure].mean(),
                "worst_loss": (tenth - of_found.min(axis=1))[sure].max(initial=0),
                "from_oracle": [away.mean(), away.max()],
                "from_float32": [away32.mean(), away32.max()],
            }
            print(json.dumps(line, default=lambda x: np.round(x, 4).tolist()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
