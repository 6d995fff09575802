"""Time and size of tries of random docids: 4 to 8 codes out of 256.

python benchmarks/trie.py [docids ...]    prints one line of JSON per size
"""

import json
import resource
import sys
import time

import numpy as np

from gr_jax.decoding import Trie
from gr_jax.docids import DocidMap

LEVELS, CODES = 8, 256


def random_map(n: int, seed: int = 0) -> DocidMap:
    rng = np.random.default_rng(seed)
    codes = np.zeros((n, LEVELS), np.int32)
    codes[:] = rng.integers(0, CODES, (n, LEVELS), np.uint8)
    # of 4 random codes, some are the same: those get all 8
    first = codes[:, :4] @ (256 ** np.arange(4))
    again = np.ones(n, bool)
    again[np.unique(first, return_index=True)[1]] = False
    lengths = rng.integers(4, LEVELS + 1, n, np.uint8)
    lengths[again] = LEVELS
    for level in range(4, LEVELS):
        codes[lengths <= level, level] = -1
    return DocidMap(tuple(map(str, range(n))), codes, (CODES,) * LEVELS)


def measure(n: int) -> dict[str, float]:
    docid_map = random_map(n)
    start = time.perf_counter()
    unique = docid_map.unique, docid_map.prefix_free  # what sorting gives, all cached
    sort_s = time.perf_counter() - start
    start = time.perf_counter()
    trie = Trie.from_docid_map(docid_map)
    build_s = time.perf_counter() - start
    start = time.perf_counter()
    served = trie.bucketed()
    bucket_s = time.perf_counter() - start
    keep = np.random.default_rng(1).random(n) < 0.3
    start = time.perf_counter()
    subset = served.subset(keep)
    subset_s = time.perf_counter() - start
    assert unique[0] and int(subset.allowed.counts[0, -1]) == keep.sum()
    return {
        "docids": trie.docid_count,
        "sort_s": round(sort_s, 3),
        "build_s": round(build_s, 3),
        "bucket_s": round(bucket_s, 3),
        "bytes_per_docid": round(trie.nbytes / n, 2),
        "bytes_per_docid_without_documents": round((trie.nbytes - trie.documents.nbytes) / n, 2),
        "bytes_per_docid_bucketed": round(served.nbytes / n, 2),
        "subset_s": round(subset_s, 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    for size in map(int, sys.argv[1:] or (100_000, 1_000_000, 10_000_000)):
        print(json.dumps(measure(size)), flush=True)
