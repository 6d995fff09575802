"""Tiny T5s of every family as sources with random bytes, and what other programs wrote."""

import dataclasses
import functools
import os
import tempfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from gr_jax.checkpoints import (
    ParameterSource,
    from_parameters,
    open_checkpoint,
    parameter_shapes,
)
from gr_jax.errors import UserError
from gr_jax.models import T5Config

HERE = Path(__file__).parent

# head_dim * heads is not emb_dim, and no two dimensions are equal
T5_1_1 = T5Config(
    vocab_size=14,
    emb_dim=10,
    num_heads=3,
    head_dim=4,
    mlp_dim=6,
    num_encoder_layers=1,
    num_decoder_layers=2,
    relpos_buckets=8,
)
CONFIGS = {
    "t5_1_0": dataclasses.replace(T5_1_1, mlp_activations=("relu",), logits_via_embedding=True),
    "t5_1_1": T5_1_1,
    "umt5": dataclasses.replace(T5_1_1, relpos_per_layer=True),
    "docids": dataclasses.replace(T5_1_1, target_vocab_size=9),
    "docids_tied": dataclasses.replace(T5_1_1, target_vocab_size=9, logits_via_embedding=True),
}


@functools.cache
def arrays_of(config: T5Config, seed: int = 0, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Random values of every parameter, by name."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(config).items()
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes}


def source_of(
    config: T5Config, *, seed: int = 0, dtype: type = np.float32, step: int | None = 3
) -> ParameterSource:
    return from_parameters(
        unflatten_dict(arrays_of(config, seed, dtype), sep="/"), config, step=step
    )


def assert_holds(source: ParameterSource, arrays: dict[str, np.ndarray]) -> None:
    """That a source has these parameters, bit for bit."""
    assert source.leaves.keys() == arrays.keys()
    for name, array in arrays.items():
        read = source.read(name)
        assert read.dtype == array.dtype and read.shape == array.shape, name
        np.testing.assert_array_equal(read, array, err_msg=name)


def one_line(path: Path) -> str:
    """The one line that refuses the checkpoint at `path`, at the latest when all of it is read."""
    with pytest.raises(UserError) as error:
        source = open_checkpoint(path)
        for name in source.leaves:
            source.read(name)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


BFLOAT16 = ml_dtypes.bfloat16


@pytest.fixture(params=CONFIGS)
def config(request) -> T5Config:
    return CONFIGS[request.param]


@pytest.fixture(scope="session")
def memory_folder():
    """A folder in memory where there is one: Orbax flushes each of its many files to the disk."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(memory_folder: Path):
    with tempfile.TemporaryDirectory(dir=memory_folder) as folder:
        yield Path(folder)


def _unpacked(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name)
    with zipfile.ZipFile(HERE / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def hf_goldens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers' `save_pretrained` wrote, and logits: see hf_reference.py."""
    return _unpacked("hf_goldens", tmp_path_factory)


@pytest.fixture(scope="session")
def t5x_goldens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What t5x itself wrote (cc342d4, April 2026), and the same arrays as .npz.

    A T5 1.1 with Adafactor's state, in t5x's own format unscanned and in Orbax's scanned.
    """
    return _unpacked("t5x_goldens", tmp_path_factory)
