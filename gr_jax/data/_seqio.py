"""The SeqIO side: plain tasks and mixtures that t5x can train on too. Imports TensorFlow."""

from __future__ import annotations

import difflib
import functools
import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gr_jax.console import hidden_stderr
from gr_jax.data._tokenizer import is_bytes
from gr_jax.errors import UserError

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
    name: str, files: Sequence[Path], *, sentencepiece: Path, target_vocab_size: int
) -> seqio.Task:
    """Registers (or registers anew) the SeqIO task of a source's example files.

    Its tokens can be kept by `seqio_cache_tasks`: all but the cut to a length and the end token,
    which are the reader's.

    Args:
      name: of the task in SeqIO's registry.
      files: those written by `write_examples`; split `train`.
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
        source=seqio.TextLineDataSource(  # pyright: ignore[reportArgumentType]
            {"train": [glob.escape(str(file)) for file in files]}
        ),
        preprocessors=[
            _parse_line,
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.CacheDatasetPlaceholder(),
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


def registered_mixture(name: str) -> seqio.Mixture:
    """What is registered under a name; a task as a mixture of itself.

    Raises:
      UserError: nothing is, or it has not the features and the split that training reads.
    """
    names = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else "import the module that registers it"
        raise UserError(f"{name}: no such SeqIO mixture or task; {hint}")
    found = seqio.get_mixture_or_task(name)
    if isinstance(found, seqio.Task):
        found = seqio.Mixture(name, [(found, 1.0)])
    for task in found.tasks:
        missing = {"inputs", "targets"} - set(task.output_features)
        if missing or "train" not in task.splits:
            lacks = f"feature {min(missing)}" if missing else "split train"
            raise UserError(f"{task.name}: the SeqIO task has no {lacks}")
    return found


def find_cache(task: seqio.Task, folders: Sequence[str]) -> bool:
    """Whether one of the folders has the task's SeqIO cache; if so, the task reads that one."""
    others = seqio.get_global_cache_dirs()
    seqio.set_global_cache_dirs(folders)
    try:
        return task.cache_dir is not None  # looked up once: the task remembers it
    finally:
        seqio.set_global_cache_dirs(others)


def cached_shards(task: seqio.Task) -> int:
    """Number of files of a task's SeqIO cache."""
    with tf.io.gfile.GFile(seqio.get_cached_info_path(task.cache_dir, "train")) as stream:
        return json.load(stream)["num_shards"]


def _forget(registry: type, name: str) -> None:
    # a notebook prepares one corpus after another in one process
    if name in registry.names():  # pyright: ignore[reportAttributeAccessIssue]
        registry.remove(name)  # pyright: ignore[reportAttributeAccessIssue]
