"""Hugging Face's T5 and its constrained beam search: what gr_jax's decoder is measured against.

A script for a Python that has torch and transformers, which need not be gr_jax's Python:

    python benchmarks/hugging_face.py --serve              # answers JSON lines, see `Worker`
    python benchmarks/hugging_face.py --goldens FILE.json  # writes what test_hf_parity compares

Without torch it can be imported: `parity_cases`, `make_weights` and `t5x_tree` need only NumPy, and
are how gr_jax's side gets the same models and corpora.
"""

# pyright: reportMissingImports=false
# torch and transformers are not in the environment that gr_jax is checked in

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EOS = 1
FIRST_TOKEN = 3  # token of code 0: after pad, end and unknown
FILLER = -1e8  # Hugging Face marks rows that are no answer with scores around -1e9

# --- models, in NumPy ---------------------------------------------------------------------------


def weight_shapes(
    config: dict[str, Any], *, bias_per_layer: bool = False
) -> dict[str, tuple[int, ...]]:
    """Hugging Face's name and shape of every tensor that is not an alias of another.

    `bias_per_layer` is umT5's: position biases in every block, not in a stack's first.
    """
    d, ff, vocab = config["d_model"], config["d_ff"], config["vocab_size"]
    inner = config["num_heads"] * config["d_kv"]
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (vocab, d)}
    ups = ["wi_0", "wi_1"] if config["feed_forward_proj"].startswith("gated-") else ["wi"]
    for stack, layers, attentions in (
        ("encoder", config["num_layers"], ["SelfAttention"]),
        ("decoder", config["num_decoder_layers"], ["SelfAttention", "EncDecAttention"]),
    ):
        for block in (f"{stack}.block.{i}.layer" for i in range(layers)):
            for i, attention in enumerate(attentions):
                for name in "qkv":
                    shapes[f"{block}.{i}.{attention}.{name}.weight"] = (inner, d)
                shapes[f"{block}.{i}.{attention}.o.weight"] = (d, inner)
                shapes[f"{block}.{i}.layer_norm.weight"] = (d,)
            last = len(attentions)
            for name in ups:
                shapes[f"{block}.{last}.DenseReluDense.{name}.weight"] = (ff, d)
            shapes[f"{block}.{last}.DenseReluDense.wo.weight"] = (d, ff)
            shapes[f"{block}.{last}.layer_norm.weight"] = (d,)
        for i in range(layers if bias_per_layer else 1):
            bias = f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
            shapes[bias] = (32, config["num_heads"])
        shapes[f"{stack}.final_layer_norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, d)
    return shapes


def make_weights(
    config: dict[str, Any], seed: int, *, bias_per_layer: bool = False
) -> dict[str, np.ndarray]:
    """Random float32 weights; each depends on `seed` and its name alone, not on the others.

    Tensor = standard normals of `default_rng([seed, crc32(name)])`, times a scale: 2 for token
    tables (so that the logits of a tied head have a standard deviation near 2), 2.5/sqrt(fan in)
    for the untied head, 1/sqrt(fan in) for other matrices, with another 1/sqrt(d_kv) for queries,
    0.5 for position biases; norms are 1 plus 0.1 of it.
    """
    weights = {}
    for name, shape in weight_shapes(config, bias_per_layer=bias_per_layer).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        x = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("layer_norm.weight"):
            x = 1 + 0.1 * x
        elif name == "shared.weight":
            x *= 2
        elif name.endswith("relative_attention_bias.weight"):
            x *= 0.5
        else:
            scale = 1 / math.sqrt(shape[1])
            if name.endswith(".q.weight"):
                scale /= math.sqrt(config["d_kv"])
            x *= 2.5 * scale if name == "lm_head.weight" else scale
        weights[name] = x.astype(np.float32)
    return weights


_T5X = {
    "q": "query", "k": "key", "v": "value", "o": "out",
    "SelfAttention": "self_attention", "EncDecAttention": "encoder_decoder_attention",
}  # fmt: skip


def t5x_tree(
    config: dict[str, Any], weights: dict[str, np.ndarray], *, bias_per_layer: bool = False
) -> dict[str, Any]:
    """The same weights as t5x's (and gr_jax's) tree: matrices are the other way round there."""
    tree: dict[str, Any] = {}
    for name, x in weights.items():
        stack, *rest = name.split(".")[:-1]
        if stack == "shared":
            path, x = ["token_embedder", "embedding"], x.T
        elif stack == "lm_head":
            path = ["decoder", "logits_dense", "kernel"]
        elif rest[-1] == "relative_attention_bias":
            path = ["relpos_bias", "rel_embedding"]
            path = [stack, f"layers_{rest[1]}", *path] if bias_per_layer else [stack, *path]
        elif rest == ["final_layer_norm"]:
            path = [stack, f"{stack}_norm", "scale"]
        else:
            _, block, _, sub, *rest = rest  # block.3.layer.1.SelfAttention.q
            kinds = ["self_attention", "cross_attention", "mlp"]
            if stack == "encoder":
                kinds = ["attention", "mlp"]
            if rest == ["layer_norm"]:
                path = [f"pre_{kinds[int(sub)]}_layer_norm", "scale"]
            elif rest[0] == "DenseReluDense":
                path = ["mlp", rest[1], "kernel"]
            else:
                attention = "attention" if stack == "encoder" else _T5X[rest[0]]
                path = [attention, _T5X[rest[1]], "kernel"]
            path = [stack, f"layers_{block}", *path]
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.ascontiguousarray(x.T)
    return tree


# --- the cases of the parity test ---------------------------------------------------------------

LEVELS, CODES = 6, 24
BEAMS = (1, 10, 100)
_SHAPE = {
    "vocab_size": 150, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8,
    "num_layers": 2, "num_decoder_layers": 2,
}  # fmt: skip
MODELS = {
    "t5_1_0": {**_SHAPE, "feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5_1_1": {**_SHAPE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
# Tokens of code 0 of each level: shared by all levels, or each level with its own. "few" has fewer
# docids than the largest beam.
CORPORA = {
    "shared": (FIRST_TOKEN,) * LEVELS,
    "disjoint": tuple(FIRST_TOKEN + CODES * level for level in range(LEVELS)),
    "few": (FIRST_TOKEN,) * LEVELS,
}
SEED = 1  # no two candidates of any decision of theirs are closer than 1e-4


def parity_docids(corpus: str) -> list[tuple[int, ...]]:
    """About 400 distinct docids of 2 to 6 codes, many of them a prefix of others; "few": 50."""
    rng = np.random.default_rng([SEED, 1])
    docids = set()
    for _ in range(36 if corpus == "few" else 280):
        docid = tuple(int(c) for c in rng.integers(0, CODES, rng.integers(2, LEVELS + 1)))
        docids.add(docid)
        if len(docid) > 2 and rng.random() < 0.5:  # a prefix of it
            docids.add(docid[: rng.integers(2, len(docid))])
    return sorted(docids)


def parity_queries() -> np.ndarray:
    """Six sources of 2 to 20 tokens, 0-padded at the end; int64 [6, 20]."""
    rng = np.random.default_rng([SEED, 2])
    queries = rng.integers(FIRST_TOKEN, _SHAPE["vocab_size"], (6, 20))
    lengths = np.array([20, 2, 5, 9, 14, 17])
    return np.where(np.arange(20) < lengths[:, None], queries, 0)


def parity_tokens(corpus: str) -> np.ndarray:
    """The docids of a corpus as `docid_tokens`."""
    return docid_tokens(parity_docids(corpus), CORPORA[corpus])


def docid_tokens(docids: list[tuple[int, ...]], first_tokens: tuple[int, ...]) -> np.ndarray:
    """Docids as tokens with the end token, 0-padded: int32 [docids, levels + 1]."""
    tokens = np.zeros((len(docids), len(first_tokens) + 1), np.int32)
    for row, docid in zip(tokens, docids, strict=True):
        row[: len(docid)] = np.array(docid) + first_tokens[: len(docid)]
        row[len(docid)] = EOS
    return tokens


# --- Hugging Face -------------------------------------------------------------------------------


def build_model(config: dict[str, Any], weights: dict[str, np.ndarray] | None, seed: int) -> Any:
    """A `T5ForConditionalGeneration` whose output layer is tied or untied as `config` says.

    In transformers 5, `tie_word_embeddings=False` switches off nothing but the scaling of the
    decoder's output: T5Config sets the attribute itself to True, and the head stays an alias of
    the token table. Untying it takes a parameter of its own.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(**config, decoder_start_token_id=0))
    tied = config["tie_word_embeddings"]
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.shared.weight.shape) * 0.05)
    if weights is not None:
        loaded = {name: torch.from_numpy(np.array(x)) for name, x in weights.items()}
        missing, unexpected = model.load_state_dict(loaded, strict=False)
        aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        aliases |= {"lm_head.weight"} if tied else set()
        if unexpected or set(missing) - aliases:
            raise ValueError(f"weights: missing {missing}, unexpected {unexpected}")
    if (model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()) != tied:
        raise ValueError("the head is not tied, or untied, as asked")
    if model.config.scale_decoder_outputs != tied:
        raise ValueError("the decoder's output is not scaled as T5 1.0 and 1.1 do")
    return model.eval()


def prefix_constraint(tokens: np.ndarray) -> Callable[[int, Any], list[int]]:
    """A `prefix_allowed_tokens_fn` for 0-padded docids: a dict from prefix to allowed tokens."""
    allowed: dict[tuple[int, ...], dict[int, None]] = {}
    for row in tokens.tolist():
        docid = row[: row.index(EOS) + 1]
        prefix = (0,)  # the start token
        for token in docid:
            allowed.setdefault(prefix, {})[token] = None
            prefix = (*prefix, token)
    table = {prefix: list(after) for prefix, after in allowed.items()}
    # Fillers (prefixes that ended or are invalid, with scores of -1e9 or -inf) are asked about too,
    # and an empty list raises.
    filler = [EOS]

    def allowed_tokens(_batch: int, prefix: Any) -> list[int]:
        return table.get(tuple(prefix.tolist()), filler)

    return allowed_tokens


def generate(
    model: Any,
    source: np.ndarray,
    *,
    beams: int,
    max_new_tokens: int,
    constraint: Callable[[int, Any], list[int]] | None,
    scores: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Canonical beam search: no length penalty, no heuristic stop; with `beams` 1, greedy search.

    Args:
      model: from `build_model`.
      source: 0-padded token ids [n, length].
      beams: beams, and sequences returned, per query.
      max_new_tokens: at least the length of the longest docid with its end token.
      constraint: from `prefix_constraint`, or None for an unconstrained search.
      scores: whether to return scores; they make `generate` keep every step's logits, so timed
        calls do without.

    Returns:
      Token sequences, start token included [n * beams, length], and their log-probabilities
      [n * beams]; fillers included, see `ranked_docids`.
    """
    import torch

    tokens = torch.from_numpy(np.asarray(source, np.int64)).to(model.device)
    settings: dict[str, Any] = {"num_beams": beams}
    if beams > 1:
        settings |= {
            "num_return_sequences": beams,
            "early_stopping": "never",
            "length_penalty": 0.0,
        }
    if scores:
        settings |= {"return_dict_in_generate": True}
        settings["output_scores" if beams > 1 else "output_logits"] = True
    with torch.inference_mode():
        out = model.generate(
            input_ids=tokens,
            attention_mask=(tokens != 0).long(),
            prefix_allowed_tokens_fn=constraint,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **settings,
        )
        if not scores:
            return out.cpu().numpy(), None
        sequences = out.sequences.cpu().numpy()
        if beams > 1:
            return sequences, out.sequences_scores.float().cpu().numpy()
        # greedy search reports no score of the whole: [n, steps]
        chosen = out.sequences[:, 1:, None]
        steps = torch.stack(out.logits, dim=1).float().log_softmax(-1).gather(2, chosen)[..., 0]
        ended = (chosen[..., 0] == EOS).long().cumsum(1) - (chosen[..., 0] == EOS).long()
        return sequences, torch.where(ended > 0, 0.0, steps).sum(1).cpu().numpy()


def ranked_docids(
    sequences: np.ndarray, scores: np.ndarray, row_of: dict[tuple[int, ...], int]
) -> tuple[list[int], list[float]]:
    """One query's answers as rows of the corpus, without what `generate` returns beside answers.

    Sequences are cut at the first end token (they are padded with 0 or with more of those).
    Fillers are duplicates, unfinished or ended twice, and score -1e9; nothing else may be invalid.

    Raises:
      ValueError: an answer with a proper score is no docid, or comes twice.
    """
    rows, kept = [], []
    for sequence, score in zip(sequences.tolist(), scores.tolist(), strict=True):
        if score < FILLER:
            continue
        docid = sequence[1:]
        row = row_of.get(tuple(docid[: docid.index(EOS) + 1] if EOS in docid else docid))
        if row is None or row in rows:
            raise ValueError(f"generate returned {sequence} with score {score}")
        rows.append(row)
        kept.append(score)
    return rows, kept


def _seven_digits(x: Any) -> Any:
    return [_seven_digits(y) for y in x] if isinstance(x, list) else float(f"{x:.7g}")


def synchronize() -> None:
    """Waits for what a GPU, if there is one, has been asked to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


# Where logits are compared: query i with docid 5 * i, these columns of every step.
LOGIT_COLUMNS = (0, 1, 2, 3, 40, 77, 113, 149)


def teacher_forced(tokens: np.ndarray, queries: int) -> np.ndarray:
    """What the decoder reads for the logits of the goldens: shifted docids [queries, levels]."""
    return np.pad(tokens[5 * np.arange(queries), : LEVELS - 1], ((0, 0), (1, 0)))


def make_goldens() -> dict[str, Any]:
    """Everything that the parity test compares, computed by Hugging Face."""
    import torch

    queries = parity_queries()
    cases: dict[str, Any] = {}
    for model_name, config in MODELS.items():
        model = build_model(config, make_weights(config, SEED), SEED)
        for corpus in CORPORA:
            tokens = parity_tokens(corpus)
            source = torch.from_numpy(queries)
            with torch.inference_mode():
                out = model(
                    input_ids=source,
                    attention_mask=(source != 0).long(),
                    decoder_input_ids=torch.from_numpy(teacher_forced(tokens, len(queries))).long(),
                )
            case: dict[str, Any] = {
                # [query, step, column]; the encoder's output at each query's first token
                "logits": _seven_digits(out.logits[..., list(LOGIT_COLUMNS)].tolist()),
                "encoded": _seven_digits(out.encoder_last_hidden_state[:, 0, ::4].tolist()),
            }
            row_of = {tuple(t for t in row if t): i for i, row in enumerate(tokens.tolist())}
            for beams in BEAMS:
                sequences, scores = generate(
                    model,
                    queries,
                    beams=beams,
                    max_new_tokens=LEVELS + 1,
                    constraint=prefix_constraint(tokens),
                    scores=True,
                )
                assert scores is not None
                answers = [
                    ranked_docids(*pair, row_of)
                    for pair in zip(
                        sequences.reshape(len(queries), beams, -1),
                        scores.reshape(len(queries), beams),
                        strict=True,
                    )
                ]
                case[f"beam_{beams}"] = {
                    "rows": [rows for rows, _ in answers],
                    "scores": [_seven_digits(kept) for _, kept in answers],
                }
            cases[f"{model_name}/{corpus}"] = case
    return {
        "command": "python benchmarks/hugging_face.py --goldens tests/decoding/hf_goldens.json",
        "versions": versions(),
        "cases": cases,
    }


# --- the worker ---------------------------------------------------------------------------------


class Worker:
    """What `--serve` answers: one method per "op" of a request.

    {"op": "info"}
      -> versions and threads
    {"op": "load", "config": {...}, "model": NPZ or null, "docids": NPZ, "seed": 0, "threads": 2,
     "dtype": "float32" or "bfloat16", "device": "cpu" or "cuda"}
      builds the model (random weights without an npz of them under Hugging Face's names) and the
      constraint for the npz's `tokens`, int32 [docids, length], each ending with 1, then 0
    {"op": "generate", "source": NPY, "beams": 10, "constrained": true, "repeat": 1,
     "answers": NPZ or null, "scores": false}
      -> "ms" of each repetition; the npz gets `tokens` [n, beams, length] and, if asked and by
      a call of its own, `scores` [n, beams]
    {"op": "matmul"}
      -> "gflops" of matrix products in the shape of a search's, in the loaded dtype
    """

    OPS = ("info", "load", "generate", "matmul")

    def __init__(self):
        self.model: Any = None
        self.constraint: Any = None
        self.max_new_tokens = 0

    def info(self, _request: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {**versions(), "threads": torch.get_num_threads()}

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(request.get("threads", 2))
        weights = None
        if request.get("model"):
            with np.load(request["model"]) as file:
                weights = dict(file)
        model = build_model(request["config"], weights, request.get("seed", 0))
        dtype = getattr(torch, request.get("dtype", "float32"))
        self.model = model.to(device=request.get("device", "cpu"), dtype=dtype)
        with np.load(request["docids"]) as file:
            tokens = file["tokens"]
        self.constraint = prefix_constraint(tokens)
        self.max_new_tokens = tokens.shape[1]
        parameters = sum(p.numel() for p in model.parameters())
        return {"parameters": parameters, "docids": len(tokens)}

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        source = np.load(request["source"])
        settings = {
            "beams": request["beams"],
            "max_new_tokens": self.max_new_tokens,
            "constraint": self.constraint if request.get("constrained", True) else None,
        }
        times, answers = [], {}
        for _ in range(request.get("repeat", 1)):
            start = time.perf_counter()
            answers["tokens"], _ = generate(self.model, source, scores=False, **settings)
            times.append(1e3 * (time.perf_counter() - start))
        if request.get("scores"):
            answers["tokens"], answers["scores"] = generate(
                self.model, source, scores=True, **settings
            )
        if request.get("answers"):
            shape = (len(source), request["beams"])
            answers = {name: x.reshape(*shape, *x.shape[1:]) for name, x in answers.items()}
            np.savez(request["answers"], **answers)
        return {"ms": times}

    def matmul(self, _request: dict[str, Any]) -> dict[str, Any]:
        import torch

        on = {"dtype": self.model.dtype, "device": self.model.device}
        x = torch.randn(1600, 512, **on)
        a, b = torch.randn(512, 1152, **on) / 23, torch.randn(1152, 512, **on) / 34
        times = []
        with torch.inference_mode():
            for _ in range(7):
                synchronize()
                start = time.perf_counter()
                for _ in range(10):
                    x = x @ a @ b
                synchronize()
                times.append(time.perf_counter() - start)
        return {"gflops": 10 * 4 * 1600 * 512 * 1152 / float(np.median(times)) / 1e9}


def serve(worker: Any) -> None:
    """Answers requests by the worker's `OPS` until input ends; an exception is an answer too."""
    # the answers have stdout to themselves: what libraries print goes to stderr
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            if request["op"] not in worker.OPS:
                raise ValueError(f"unknown op {request['op']!r}")
            answer = getattr(worker, request["op"])(request)
        except Exception as error:  # the other side decides whether to go on
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--serve", action="store_true", help="answer JSON lines on stdin")
    action.add_argument("--goldens", type=Path, metavar="FILE", help="write the parity goldens")
    options = parser.parse_args()
    if options.serve:
        serve(Worker())
    else:
        text = json.dumps(make_goldens(), separators=(",", ":"))
        options.goldens.write_text(text.replace('},"', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
