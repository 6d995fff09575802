"""Registers SeqIO tasks like those that a t5x user brings; see test_registered.py."""

import functools
import os
from pathlib import Path

import seqio
import tensorflow as tf

from gr_jax.docids import DocidMap

DIRECTORY = Path(os.environ["REGISTERED_DIRECTORY"])  # has a model directory's docids/, vocabulary/
TEXTS = ["soup and onion", "rudder", "comet over the harbour"]


def examples(split, shuffle_files, seed=None, *, wrong: str = ""):
    """Each text with the docid of a document; `wrong` says what is wrong with the last one."""
    tokens = DocidMap.load(DIRECTORY / "docids").tokens
    targets = [[t for t in tokens[i].tolist() if t] for i in range(len(TEXTS))]
    texts = list(TEXTS)
    if wrong == "longer":
        targets[-1].append(1)
    elif wrong == "unknown":
        targets[-1] = targets[-1][::-1]
    elif wrong == "empty":
        texts[-1] = ""
    return tf.data.Dataset.from_generator(
        lambda: ({"inputs": x, "targets": y} for x, y in zip(texts, targets, strict=True)),
        output_signature={
            "inputs": tf.TensorSpec([], tf.string),
            "targets": tf.TensorSpec([None], tf.int32),
        },
    )


def add(name: str, *, features=("inputs", "targets"), split="train", **changes) -> None:
    vocabulary = seqio.SentencePieceVocabulary(
        str(DIRECTORY / "vocabulary" / "sentencepiece.model"), extra_ids=0
    )
    of_features = {
        "inputs": seqio.Feature(vocabulary, add_eos=False),
        "targets": seqio.Feature(seqio.PassThroughVocabulary(1000), add_eos=False),
    }
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(  # pyright: ignore[reportArgumentType]
            functools.partial(examples, **changes), splits=[split]
        ),
        preprocessors=[functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False)],
        output_features={name: of_features[name] for name in features},
    )


add("brought_queries")
add("brought_other")
for fault in ("longer", "unknown", "empty"):
    add(f"brought_{fault}", wrong=fault)
add("brought_inputs_only", features=("inputs",))
add("brought_test_only", split="test")
seqio.MixtureRegistry.add("brought", [("brought_queries", 3.0), ("brought_other", 1.0)])
