"""What a model directory remembers, and what a kill in the middle of a stage leaves."""

import pytest

from gr_jax.corpus import read_corpus
from gr_jax.errors import UserError
from gr_jax.pipeline import Workspace


class Killed(BaseException):
    pass


def test_a_stage_is_done_once_for_its_settings(tmp_path):
    done = []
    output = tmp_path / "out"

    def build(content: str):
        def run():
            output.write_text(content)
            done.append(content)

        return run

    for _ in range(2):
        Workspace(tmp_path).stage("docids", {"x": 1}, output, build("A"))
    assert done == ["A"]
    Workspace(tmp_path).stage("docids", {"x": 2}, output, build("B"))
    assert done == ["A", "B"] and output.read_text() == "B"
    output.unlink()
    Workspace(tmp_path).stage("docids", {"x": 2}, output, build("B"))
    assert done == ["A", "B", "B"]


def test_a_killed_stage_is_never_taken_for_the_one_before(tmp_path):
    output = tmp_path / "out"

    def half():
        output.write_text("half of B")
        raise Killed

    Workspace(tmp_path).stage("examples", {"x": 1}, output, lambda: output.write_text("A") and None)
    with pytest.raises(Killed):
        Workspace(tmp_path).stage("examples", {"x": 2}, output, half)
    Workspace(tmp_path).stage("examples", {"x": 1}, output, lambda: output.write_text("A") and None)
    assert output.read_text() == "A"


def test_an_unfinished_first_checkpoint_is_not_a_model(tmp_path):
    (tmp_path / "checkpoint_500.orbax-checkpoint-tmp").mkdir()
    assert not Workspace(tmp_path).trained
    (tmp_path / "checkpoint_500").mkdir()
    assert Workspace(tmp_path).trained


def test_claim_remembers_documents_without_text(tmp_path, beir):
    source = tmp_path / "corpus.jsonl"
    text = (beir / "corpus.jsonl").read_text()
    source.write_text('{"_id": "void", "title": "", "text": ""}\n' + text)
    Workspace(tmp_path / "m").claim(read_corpus(source))
    assert Workspace(tmp_path / "m").skipped == ("void",)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(UserError, match=r"stages\.json: damaged"):
        Workspace(tmp_path)
