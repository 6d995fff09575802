"""The token cache of many files: in bounded memory, by any number of processes, or from SeqIO's."""

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from gr_jax.data import (
    MixtureCache,
    RegisteredMixture,
    build_cache,
    example_files,
    local_copy,
    write_examples,
)
from gr_jax.data._build import _Joined, _Shard
from gr_jax.data._growing import GrowingArray
from gr_jax.errors import UserError
from tests.data.test_seqio import INPUT_LENGTH, NAME, Made


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """Examples in files of seven lines."""
    made = Made(tmp_path_factory.mktemp("build"))
    for name, pairs in made.pairs.items():
        write_examples(made.folder, name, made.docid_map, pairs, per_file=7)
    return made


@pytest.fixture
def seqio():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries' own
        import seqio

        yield seqio
        assert not seqio.get_global_cache_dirs()  # each cache is looked for where it was said to be


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bag(cache: MixtureCache) -> dict[str, Counter]:
    return {
        task.name: Counter(
            tuple(task.example(feature, i).tobytes() for feature in ("inputs", "targets"))
            for i in range(len(task))
        )
        for task in cache.tasks
    }


# --- many files


def test_the_cache_does_not_depend_on_the_number_of_files(made, tmp_path):
    assert len(example_files(made.folder, "index")) == 8
    made.build(tmp_path / "cache")
    # made.cache is of one file a task
    assert contents(tmp_path / "cache") == contents(made.folder / "cache")


@pytest.mark.slow
def test_the_cache_does_not_depend_on_the_number_of_processes(made, tmp_path):
    made.build(tmp_path / "cache", workers=2)
    assert contents(tmp_path / "cache") == contents(made.folder / "cache")


def test_a_killed_process_is_one_line(made, tmp_path, monkeypatch):
    class Pool:
        def __init__(self, *_, **__):
            pass

        def map(self, function, shards):
            yield function(shards[0])
            raise BrokenProcessPool("a child ended")

        def shutdown(self, **_):
            pass

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match=r"one of the 3 processes .* lower DataConfig\.workers"):
        made.build(tmp_path / "cache", workers=3)
    assert list(tmp_path.iterdir()) == []


def test_hosts_of_another_program_read_files_of_their_own(made, tmp_path, seqio):
    made.mixture().register()
    task = seqio.get_mixture_or_task(f"{NAME}_index")
    files = example_files(made.folder, "index")
    cache = made.cache.tasks[0]
    assert cache.name == "index"
    numbers = np.array_split(np.arange(len(cache)), range(7, len(cache), 7))  # of each file
    for hosts in (1, 3, len(files)):
        for host in range(hosts):
            dataset = task.get_dataset(
                {"inputs": INPUT_LENGTH, "targets": 3},
                split="train",
                shuffle=False,
                num_epochs=1,
                shard_info=seqio.ShardInfo(host, hosts),
            )
            read = sorted(tuple(ex["inputs"].tolist()) for ex in dataset.as_numpy_iterator())
            own = np.concatenate(numbers[host::hosts])
            assert read == sorted(tuple(cache.example("inputs", i).tolist()) for i in own)


def test_a_missing_file_is_refused_before_anything_is_read(made, tmp_path):
    for path in example_files(made.folder, "queries"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sources = [source for source in made.sources if source.name == "queries"]
    (tmp_path / path.name).unlink()
    with pytest.raises(UserError, match="no examples of queries"):
        made.build(tmp_path / "cache", directory=tmp_path, sources=sources)
    assert not (tmp_path / "cache").exists()


def test_a_growing_array_is_what_numpy_saves(tmp_path):
    for length in (0, 1, 9, 10, 99_999, 1_234_567):
        values = np.arange(length, dtype=np.int32)
        array = GrowingArray(tmp_path / "grown.npy", np.int32)
        for part in np.array_split(values, 5):
            array.append(part)
        array.close()
        np.save(tmp_path / "saved.npy", values)
        assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_joining_and_loading_hold_little_of_a_large_task(tmp_path):
    examples, files = 300_000, 4
    tracemalloc.start()
    try:
        with _Joined(tmp_path, "large") as joined:
            for number in range(files):
                shard = _Shard("large", number, files, {}, False, frozenset(), tmp_path / "part")
                for feature, tokens in (("inputs", 6), ("targets", 2)):
                    for part, value, count in (
                        ("lengths", np.int64(tokens), examples),
                        ("tokens", np.int32(number + 2), examples * tokens),
                    ):
                        with shard.path(feature, part).open("wb") as stream:
                            for at in range(0, count, 2**14):
                                here = min(2**14, count - at)
                                stream.write(np.full(here, value, value.dtype).tobytes())
                joined.append(shard)
        assert joined.examples == files * examples
        (tmp_path / "mixture.json").write_text('{"tasks": ["large"], "rates": [1.0]}')
        cache = MixtureCache.load(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) > 50e6
    assert peak < 12e6  # a file is copied four megabytes at a time
    assert cache.sizes == (files * examples,)
    assert cache.tasks[0].longest("inputs") == 6
    for number in range(files):
        last = (number + 1) * examples - 1
        assert cache.tasks[0].example("inputs", last).tolist() == [number + 2] * 6
        assert cache.tasks[0].example("targets", last).tolist() == [number + 2] * 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}


# --- a host's own copy


def copies(folder: Path) -> list[Path]:
    """What takes room in a folder of copies."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


# A process that copies: it says so of each file, and waits to be killed where it is told to.
COPIER = """
import shutil, signal, sys, time
from pathlib import Path
from gr_jax.data import local_copy

cache, folder, wait = sys.argv[1:]
copyfile = shutil.copyfile

def copied(source, target):
    copyfile(source, target)
    time.sleep(0.01)
    print(source, flush=True)
    if Path(source).name == wait:
        signal.pause()

shutil.copyfile = copied
print(local_copy(Path(cache), Path(folder)), flush=True)
if wait == "reading":
    signal.pause()
"""


@contextlib.contextmanager
def copier(cache: Path, folder: Path, wait: str = "") -> Iterator[IO[str]]:
    """What it prints; it is killed (SIGKILL) at the end."""
    command = [sys.executable, "-c", COPIER, str(cache), str(folder), wait]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout
        finally:
            process.kill()


def test_a_hosts_copy_is_made_once_of_each_writing(made, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(made.folder / "cache", cache)
    copy = local_copy(cache, tmp_path / "local" / "disk")
    assert contents(copy) == contents(cache)
    (copy / "queries.inputs.tokens.npy").unlink()  # to see that it is taken as it is
    assert local_copy(cache, tmp_path / "local" / "disk") == copy
    assert not (copy / "queries.inputs.tokens.npy").exists()
    made.build(cache, input_length=5)  # another writing
    again = local_copy(cache, tmp_path / "local" / "disk")
    assert again != copy and contents(again) == contents(cache)
    # this process may still read the first one
    assert {*copies(copy.parent)} == {copy, again}


def test_processes_of_a_host_make_one_copy(made, tmp_path):
    cache = made.folder / "cache"
    with contextlib.ExitStack() as running:
        processes = [running.enter_context(copier(cache, tmp_path)) for _ in range(3)]
        said = [process.read().splitlines() for process in processes]
    (copy,) = copies(tmp_path)
    assert [lines[-1] for lines in said] == [str(copy)] * 3
    assert sorted(len(lines) - 1 for lines in said) == [0, 0, len(contents(cache))]
    assert contents(copy) == contents(cache)


def test_what_a_killed_process_left_of_a_copy_is_removed(made, tmp_path):
    cache = made.folder / "cache"
    left = []
    for name in sorted(contents(cache))[:2]:
        with copier(cache, tmp_path, wait=name) as process:
            assert any(line.strip().endswith(name) for line in process)
        left += copies(tmp_path)
        assert len(copies(tmp_path)) == 1  # the first one's is gone
    copy = local_copy(cache, tmp_path)
    assert copies(tmp_path) == [copy] and copy not in left
    assert contents(copy) == contents(cache)


def test_a_copy_of_an_earlier_writing_goes_when_nothing_reads_it(made, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(made.folder / "cache", cache)
    others = local_copy(made.folder / "cache", tmp_path / "local")  # of another model directory
    with copier(cache, tmp_path / "local", wait="reading") as reader:
        *_, first = (next(reader).strip() for _ in range(len(contents(cache)) + 1))
        before = contents(Path(first))
        (cache / "mixture.json").touch()  # another writing
        with copier(cache, tmp_path / "local") as process:
            *_, second = process.read().splitlines()
        assert contents(Path(first)) == before
        assert {*copies(tmp_path / "local")} == {others, Path(first), Path(second)}
    assert str(local_copy(cache, tmp_path / "local")) == second
    assert {*copies(tmp_path / "local")} == {others, Path(second)}


def test_what_cannot_be_copied_is_one_line(made, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere: the token cache is missing"):
        local_copy(tmp_path / "nowhere", tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="the disk is full"):
        local_copy(made.folder / "cache", tmp_path / "local")
    assert copies(tmp_path / "local") == []

    def without_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(UserError, match="local: has no file locks; choose a directory"):
        local_copy(made.folder / "cache", tmp_path / "local")


# --- SeqIO's own caches


def write_seqio_cache(seqio, task, directory: Path, *, examples=None) -> None:
    """What `seqio_cache_tasks` writes, but for its statistics: shuffled examples in three files."""
    import tensorflow as tf

    dataset = task.preprocess_precache(task.source.get_dataset("train", shuffle=False))
    records = [seqio.dict_to_tfexample(example) for example in dataset.as_numpy_iterator()]
    records = records[:examples]
    random.Random(1).shuffle(records)
    directory.mkdir(parents=True)
    for number in range(3):
        with tf.io.TFRecordWriter(str(directory / f"train.tfrecord-{number:05}-of-00003")) as file:
            for record in records[number::3]:
                file.write(record.SerializeToString())
    features = {name: {"shape": [None], "dtype": "int32"} for name in ("inputs", "targets")}
    info = {"num_shards": 3, "features": features, "seqio_version": seqio.__version__}
    (directory / "info.train.json").write_text(json.dumps(info))
    (directory / "stats.train.json").write_text(json.dumps({"examples": len(records)}))
    (directory / "COMPLETED").write_text("")


@pytest.fixture
def cached(made, seqio, tmp_path):
    """Caches of all tasks, in two directories."""
    mixture = made.mixture().register()
    for task, folder in zip(mixture.tasks, ("one", "two", "two"), strict=True):
        write_seqio_cache(seqio, task, tmp_path / folder / task.name)
    return (str(tmp_path / "one"), str(tmp_path / "two"))


def test_seqio_caches_give_the_same_examples(made, tmp_path, cached):
    cache = made.build(tmp_path / "cache", cache_dirs=cached)
    assert bag(cache) == bag(made.cache)
    assert (cache.rates, cache.sizes) == (made.cache.rates, made.cache.sizes)
    tokens = [task.tokens["inputs"].tolist() for task in cache.tasks]
    assert tokens != [task.tokens["inputs"].tolist() for task in made.cache.tasks]  # shuffled
    # they hold what is before the cut to a length
    longer = made.build(tmp_path / "cache", cache_dirs=cached, input_length=40)
    assert bag(longer) == bag(made.build(tmp_path / "cache", input_length=40)) != bag(cache)


def test_the_cache_of_a_registered_mixture_is_read(made, tmp_path, cached):
    cache = build_cache(
        tmp_path / "cache",
        RegisteredMixture(NAME),  # `cached` has registered it
        input_length=INPUT_LENGTH,
        target_length=made.docid_map.vocabulary.max_tokens,
        cache_dirs=cached,
    )
    names = {f"{NAME}_{name}": examples for name, examples in bag(made.cache).items()}
    assert bag(cache) == names and cache.rates == made.cache.rates


def test_without_a_seqio_cache_the_command_that_makes_one_is_named(made, tmp_path, seqio):
    message = f"{NAME}_index is in no SeqIO cache; make one with .* --output_cache_dir=/nowhere"
    with pytest.raises(UserError, match=message):
        made.build(tmp_path / "cache", cache_dirs=("/nowhere",))


def test_a_seqio_cache_of_other_examples_is_refused(made, tmp_path, seqio):
    mixture = made.mixture().register()
    for i, task in enumerate(mixture.tasks):
        # a task is less one example
        write_seqio_cache(seqio, task, tmp_path / "less" / task.name, examples=-1 if i else None)
    with pytest.raises(UserError, match=f"the SeqIO cache of {NAME}_queries is of other examples"):
        made.build(tmp_path / "cache", cache_dirs=(str(tmp_path / "less"),))
    assert not (tmp_path / "cache").exists()
    # as many examples, with other docids
    other = made.mixture(directory=tmp_path / "other").directory
    for name, pairs in made.pairs.items():
        write_examples(other, name, made.docid_map, [(text, 7 - row) for text, row in pairs])
    for task in made.mixture(directory=other).register().tasks:
        write_seqio_cache(seqio, task, tmp_path / "others" / task.name)
    with pytest.raises(UserError, match=f"the SeqIO cache of {NAME}_index is of other examples"):
        made.build(tmp_path / "cache", cache_dirs=(str(tmp_path / "others"),))


@pytest.mark.beam
def test_what_seqio_cache_tasks_writes_is_read(made, tmp_path, seqio):
    python = os.environ.get("GR_JAX_BEAM_PYTHON")
    if not python:
        pytest.skip("GR_JAX_BEAM_PYTHON names no Python with apache-beam, seqio and gr_jax")
    # as a model directory, whose tasks gr_jax.tasks.model_dir registers
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "sentencepiece.model").write_bytes(
        (made.folder / "sp.model").read_bytes()
    )
    made.docid_map.save(tmp_path / "docids")
    for name, pairs in made.pairs.items():
        write_examples(tmp_path / "examples", name, made.docid_map, pairs, per_file=7)
    mixture = made.mixture(
        directory=tmp_path / "examples",
        sentencepiece=tmp_path / "vocabulary" / "sentencepiece.model",
    )
    mixture.save()
    done = subprocess.run(
        [
            python, "-m", "seqio.scripts.cache_tasks_main", f"--tasks={NAME}_.*",
            "--module_import=gr_jax.tasks.model_dir", f"--output_cache_dir={tmp_path / 'seqio'}",
        ],
        env={**os.environ, "GR_JAX_MODEL_DIR": str(tmp_path), "PYTHONPATH": sys.path[0]},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    cache = made.build(tmp_path / "cache", cache_dirs=(str(tmp_path / "seqio"),))
    assert bag(cache) == bag(made.cache)
