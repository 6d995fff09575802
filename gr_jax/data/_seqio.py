"""The SeqIO side: plain tasks and mixtures that t5x can train on too. Imports TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from gr_jax.console import hidden_stderr
from gr_jax.data._tokenizer import is_bytes

with hidden_stderr():  # TensorFlow greets with a screenful of hardware it did not find
    import seqio
    import tensorflow as tf
    from seqio import vocabularies

    tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's


def _parse_line(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`text <TAB> tokens` -> inputs (string) and targets (int32)."""

    def parse(line: tf.Tensor) -> dict[str, tf.Tensor]:
        fields = tf.strings.split(line, "\t")
        targets = tf.strings.to_number(tf.strings.split(fields[1], " "), tf.int32)
        return {"inputs": fields[0], "targets": targets}

    return dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)


def register_task(
    name: str, examples: Path, *, sentencepiece: Path, target_vocab_size: int
) -> seqio.Task:
    """Registers (or registers anew) the SeqIO task of one examples file.

    Args:
      name: of the task in SeqIO's registry.
      examples: the file written by `write_examples`; split `train`.
      sentencepiece: model of the input vocabulary, or the file that stands for bytes.
      target_vocab_size: number of docid tokens.

    Returns:
      A task with features `inputs` (ids of text and the end token) and `targets` (docid
      tokens as they are: they carry their own end token where one is needed).
    """
    _forget(seqio.TaskRegistry, name)
    if is_bytes(sentencepiece):
        vocabulary = seqio.ByteVocabulary(extra_ids=0)
    else:
        # SeqIO reads a path once in the life of a process, and here may be another model by now
        vocabularies._load_model_internal.cache_clear()
        vocabulary = seqio.SentencePieceVocabulary(str(sentencepiece), extra_ids=0)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource({"train": str(examples)}),  # pyright: ignore[reportArgumentType]
        preprocessors=[
            _parse_line,
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=True),
            "targets": seqio.Feature(
                seqio.PassThroughVocabulary(size=target_vocab_size, eos_id=None), add_eos=False
            ),
        },
    )


def register_mixture(name: str, rates: Mapping[str, float]) -> seqio.Mixture:
    """Registers (or registers anew) a mixture of registered tasks with explicit rates."""
    _forget(seqio.MixtureRegistry, name)
    return seqio.MixtureRegistry.add(name, list(rates.items()))


def _forget(registry: type, name: str) -> None:
    # a notebook prepares one corpus after another in one process
    if name in registry.names():  # pyright: ignore[reportAttributeAccessIssue]
        registry.remove(name)  # pyright: ignore[reportAttributeAccessIssue]
