"""What transformers makes of tiny T5s: files that it saves, and logits of files that it loads.

Run by a Python that has torch and transformers; it imports nothing of gr_jax.

    python tests/checkpoints/hf_reference.py --save FOLDER    models of MODELS, as it saves them
    python tests/checkpoints/hf_reference.py --logits PATH..  JSON: path -> its logits
                                             --unscaled       the same, of umT5s
    python tests/checkpoints/hf_reference.py --encode PATH..  JSON: path -> token ids of TEXTS
                                             --texts TEXTS    a JSON list
    python tests/checkpoints/hf_reference.py --goldens FILE   the committed zip: both
"""

import argparse
import json
import logging
import tempfile
import zipfile
from pathlib import Path

VOCAB = 24
SOURCE = [[3, 7, 11, 2, 5, 1], [4, 9, 8, 6, 10, 1]]
TARGET = [[0, 5, 9, 2], [0, 3, 3, 7]]  # what the decoder reads
SHARD = "6KB"

_SHAPE = {
    "vocab_size": VOCAB,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
MODELS = {
    "t5_1_0": {"model_type": "t5", "feed_forward_proj": "relu", "tied": True},
    "t5_1_1": {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tied": False},
    "mt5": {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tied": False},
    "umt5": {"model_type": "umt5", "feed_forward_proj": "gated-gelu", "tied": False},
    # what transformers 5 makes from scratch has one table for all, and stores no head
    "t5_1_1_one_table": {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tied": False},
    "mt5_one_table": {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tied": False},
    "umt5_one_table": {"model_type": "umt5", "feed_forward_proj": "gated-gelu", "tied": True},
    "t5_1_1_own_scaled": {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tied": True},
}
_OWN_HEAD = ("t5_1_1", "mt5", "umt5", "t5_1_1_own_scaled")


def make(name: str):
    """A model of random weights; norms too are not what they are initialised to."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoConfig, AutoModelForSeq2SeqLM  # pyright: ignore[reportMissingImports]

    spec = MODELS[name]
    config = AutoConfig.for_model(
        spec["model_type"],
        feed_forward_proj=spec["feed_forward_proj"],
        tie_word_embeddings=spec["tied"],
        **_SHAPE,
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    if name in _OWN_HEAD:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, _SHAPE["d_model"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return model.eval()


def save(folder: Path) -> None:
    """Each model as one file and as shards, and one in bfloat16."""
    import torch  # pyright: ignore[reportMissingImports]

    for name in MODELS:
        make(name).save_pretrained(folder / name)
    make("t5_1_1").save_pretrained(folder / "t5_1_1_sharded", max_shard_size=SHARD)
    make("t5_1_0").to(torch.bfloat16).save_pretrained(folder / "t5_1_0_bfloat16")


def logits(path: str | Path, *, unscaled: bool = False):
    """Teacher-forced logits [rows, targets, vocabulary] of a saved model, in float32.

    The targets are shifted by `docid_token_offset` where the model has one. `unscaled` does what
    docs/checkpoints.md tells those who load a umT5 to do.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForSeq2SeqLM  # pyright: ignore[reportMissingImports]

    model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()
    if unscaled:
        model.config.tie_word_embeddings = False
    offset = getattr(model.config, "docid_token_offset", 0)
    assert model.config.decoder_start_token_id == offset
    with torch.no_grad():
        out = model(input_ids=torch.tensor(SOURCE), decoder_input_ids=torch.tensor(TARGET) + offset)
    return out.logits.tolist()


def token_ids(path: str, texts: list[str]) -> list[list[int]]:
    """What the tokenizer that `AutoTokenizer` finds beside a model makes of texts."""
    from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]

    return AutoTokenizer.from_pretrained(path)(texts)["input_ids"]


def goldens(path: Path) -> None:
    """Writes the saved models and their logits."""
    import transformers  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(folder)
        saved = sorted(p for p in folder.iterdir() if p.is_dir())
        record = {
            "transformers": transformers.__version__,
            "logits": {p.name: logits(p) for p in saved},
        }
        (folder / "logits.json").write_text(json.dumps(record), encoding="utf-8")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(file, file.relative_to(folder))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    parser.add_argument("--logits", nargs="*", default=[])
    parser.add_argument("--unscaled", action="store_true")
    parser.add_argument("--goldens", type=Path)
    parser.add_argument("--encode", nargs="*", default=[])
    parser.add_argument("--texts", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.save:
        save(args.save)
    if args.goldens:
        goldens(args.goldens)
    if args.logits:
        print(json.dumps({p: logits(p, unscaled=args.unscaled) for p in args.logits}))
    if args.encode:
        texts = json.loads(args.texts.read_text("utf-8"))
        print(json.dumps({path: token_ids(path, texts) for path in args.encode}))


if __name__ == "__main__":
    main()
