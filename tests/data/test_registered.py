"""Training on a mixture that somebody else registered with SeqIO: t5x's MIXTURE_OR_TASK_NAME."""

import dataclasses
import json
import warnings

import pytest

from gr_jax.data import load_tokenizer
from gr_jax.errors import UserError
from gr_jax.pipeline._collections import load_collection
from gr_jax.pipeline._prepare import prepare
from gr_jax.pipeline._workspace import Workspace
from tests.pipeline.tiny import settings

MODULE = "tests.data.registered"


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries' own
        yield


@pytest.fixture(scope="module")
def prepared(beir, tmp_path_factory):
    """Prepares one model directory again and again."""
    directory = tmp_path_factory.mktemp("registered") / "model"
    parts, collection = settings(), load_collection(str(beir), strict=False)

    def run(**changes):
        data = dataclasses.replace(parts["data"], **{"mixture_module": MODULE} | changes)
        return prepare(
            Workspace(directory),
            collection,
            docids=parts["docids"],
            queries=parts["queries"],
            data=data,
        )

    patch = pytest.MonkeyPatch()
    patch.setenv("REGISTERED_DIRECTORY", str(directory))
    yield run, directory
    patch.undo()


def test_its_examples_and_rates_are_those_trained_on(prepared):
    from tests.data import registered  # after the directory is known

    run, directory = prepared
    found = run(mixture="brought")
    assert [task.name for task in found.cache.tasks] == ["brought_other", "brought_queries"]
    assert found.cache.rates == (1.0, 3.0) and found.cache.sizes == (3, 3)
    assert not (directory / "examples").exists()
    tokenizer = load_tokenizer(directory / "vocabulary" / "sentencepiece.model", words_only=True)
    for task in found.cache.tasks:
        for i, text in enumerate(registered.TEXTS):
            assert tokenizer.decode(task.example("inputs", i).tolist()) == text
            assert task.example("targets", i).tolist() == found.docid_map.tokens[i].tolist()
    batch = found.batches(row_multiple=8, seed=0)(0)
    assert batch.examples == found.config.batch_size
    # once, until the settings change; a task is a mixture of itself
    assert "mixture" in json.loads((directory / "cache" / "mixture.json").read_text())
    assert run(mixture="brought_queries").cache.sizes == (3,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brought_longer", r"the target of example 2, \[.*, 1\], is not a docid"),
        ("brought_unknown", r"the target of example 2, \[.*\], is not a docid"),
        ("brought_empty", "has inputs without tokens"),
        ("brought_inputs_only", "has no feature targets"),
        ("brought_test_only", "has no split train"),
        ("brougth", "no such SeqIO mixture or task; did you mean brought"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(prepared, name, message):
    run, _ = prepared
    for _ in range(2):  # and again: what was refused is not taken for done
        with pytest.raises(UserError, match=message) as caught:
            run(mixture=name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_named(prepared):
    run, _ = prepared
    with pytest.raises(UserError, match=r"tests\.nowhere: cannot be imported"):
        run(mixture="brought", mixture_module="tests.nowhere")
