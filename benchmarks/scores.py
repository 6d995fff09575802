"""How scores, beams and precisions change what a trained index finds.

    python -m benchmarks.scores MODEL_DIR --corpus BEIR_FOLDER

Each line of JSON is one way to search every split: Hits@1, Hits@10, the share of queries whose
top 10 was certified exact, and, against the first precision with the same score and beam, the share
of queries with the same first document and the mean overlap of the top 10.
"""

from __future__ import annotations

import argparse
import itertools
import json

import numpy as np

from gr_jax.corpus import read_collection
from gr_jax.serving import Index, SearchConfig

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model_dir")
    parser.add_argument("--corpus", required=True, help="the BEIR folder that it was trained on")
    parser.add_argument("--scores", nargs="+", default=["full", "level", "children"])
    parser.add_argument("--beams", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    options = parser.parse_args()
    index = Index.load(options.model_dir)
    row_of = index.docid_map.index_of
    for split, queries in read_collection(options.corpus).splits.items():
        texts = [q.text for q in queries.queries]
        relevant = [{row_of[d] for d in queries.relevant(q.query_id)} for q in queries.queries]
        for score, beam in itertools.product(options.scores, options.beams):
            first = None
            for precision in options.precisions:
                config = SearchConfig(beam, score, precision)
                k = min(beam, K)
                found = index.find(texts, k=k, config=config)
                first = found.rows if first is None else first
                hits = [
                    np.mean([bool(r & set(x[:n])) for r, x in zip(relevant, found.rows.tolist(),
                                                                  strict=True)])
                    for n in (1, k)
                ]  # fmt: skip
                overlap = [
                    len(set(a) & set(b)) / k
                    for a, b in zip(found.rows.tolist(), first.tolist(), strict=True)
                ]
                record = {
                    "split": split,
                    "score": score,
                    "beam": beam,
                    "precision": precision,
                    "hits@1": round(float(hits[0]), 4),
                    f"hits@{k}": round(float(hits[1]), 4),
                    "certified": round(float(found.exact.mean()), 4),
                    "same_first": round(float((found.rows[:, 0] == first[:, 0]).mean()), 4),
                    "overlap": round(float(np.mean(overlap)), 4),
                }
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
