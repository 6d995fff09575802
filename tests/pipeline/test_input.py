"""How the settings of the input reach its stages: files, SeqIO's caches, a host's own copy."""

import dataclasses
import warnings
from collections import Counter
from pathlib import Path

import pytest

from gr_jax.data import MixtureCache, example_files, register_prepared
from gr_jax.errors import UserError
from gr_jax.pipeline import DataConfig
from gr_jax.pipeline._collections import load_collection
from gr_jax.pipeline._prepare import Prepared, prepare
from gr_jax.pipeline._workspace import Workspace
from tests.data.test_build import write_seqio_cache
from tests.pipeline.tiny import settings


def prepared(directory: Path, beir: Path, **data) -> Prepared:
    parts = settings()
    return prepare(
        Workspace(directory),
        load_collection(str(beir), strict=False),
        docids=parts["docids"],
        queries=parts["queries"],
        data=dataclasses.replace(parts["data"], **data),
    )


def examples(cache: MixtureCache) -> list[list[bytes]]:
    return [
        [
            t.example("inputs", i).tobytes() + t.example("targets", i).tobytes()
            for i in range(len(t))
        ]
        for t in cache.tasks
    ]


def test_files_caches_and_copies(beir, tmp_path):
    plain = prepared(tmp_path / "plain", beir).cache
    assert len(example_files(tmp_path / "plain" / "examples", "synthetic")) == 1

    # smaller files, read from a copy: the same cache
    model, local = tmp_path / "model", tmp_path / "local"
    split = prepared(model, beir, examples_per_file=400, local_cache=str(local)).cache
    assert examples(split) == examples(plain)
    assert len(example_files(model / "examples", "synthetic")) == 3  # 960 examples
    assert str(local) in str(vars(split.tasks[0].tokens["inputs"])["filename"])

    # SeqIO's caches: first there are none, then the command that is named has made them
    cached = {"examples_per_file": 400, "use_cached": True}
    with pytest.raises(UserError, match=f"--output_cache_dir={model / 'seqio_cache'}"):
        prepared(model, beir, **cached)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries' own
        import seqio

        # what the command imports does this
        for task in seqio.MixtureRegistry.get(register_prepared(model)).tasks:
            write_seqio_cache(seqio, task, model / "seqio_cache" / task.name)
        shuffled = prepared(model, beir, **cached).cache
    assert examples(shuffled) != examples(plain)
    assert list(map(Counter, examples(shuffled))) == list(map(Counter, examples(plain)))
    assert shuffled.rates == plain.rates


@pytest.mark.parametrize("name", ["workers", "examples_per_file"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"DataConfig.{name} is 0"):
        dataclasses.replace(DataConfig(), **{name: 0})
