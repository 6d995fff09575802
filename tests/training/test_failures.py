"""What stops a run: at which step, with which examples named, and what is left on disk."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import LossSums
from gr_jax.training import (
    Optimizer,
    Schedule,
    StepMetrics,
    load_eval_parameters,
    read_metrics,
)
from gr_jax.training._failures import LEAST_LOSSES, SPIKE_WINDOW, FailureDetector
from tests.training.tiny_run import (
    FINGERPRINT,
    STEPS,
    Altered,
    cache_of,
    make_batches,
    train_tiny,
)


@dataclasses.dataclass(frozen=True)
class Poisoned(Schedule):
    """A rate that overflows the parameters at one step (from 0)."""

    step: int = 0

    def __call__(self, step, total_steps):
        return 1e38 if step == self.step else super().__call__(step, total_steps)


def failed_run(directory, **changes):
    with pytest.raises(UserError) as error:
        train_tiny(directory, **changes)
    message = str(error.value)
    assert "\n" not in message
    return message, json.loads((directory / "failed_batch.json").read_text("utf-8"))


def assert_only_good_checkpoints(directory, newest):
    parameters, step = load_eval_parameters(directory, FINGERPRINT)
    assert step == newest
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(parameters))
    names = {p.name for p in directory.glob("checkpoint_*")}
    assert {int(name.removeprefix("checkpoint_")) for name in names} <= {5, 10, 15, newest}


# metrics come every 4 steps and checkpoints every 5, so the failure is found later than it happens
@pytest.mark.parametrize(("poisoned", "step", "saved"), [(10, 12, 10), (12, 14, 10), (16, 18, 15)])
def test_an_overflow_is_found_at_its_step(tmp_path, poisoned, step, saved):
    batches = make_batches()
    schedule = Poisoned(base=1e-2, warmup_steps=2, step=poisoned)
    message, record = failed_run(tmp_path, schedule=schedule, batches=batches)
    # step `poisoned + 1` made the parameters infinite: the next loss shows it
    assert message.startswith("training diverged: ") and f"at step {step}; look" in message
    assert f"begin at {tmp_path}/checkpoint_{saved}, the last good checkpoint" in message
    first = batches.examples(step - 1)[0]
    assert f"batch ({first[0].name}/{first[1]}, " in message
    assert f"all 16 examples in {tmp_path}/failed_batch.json" in message
    assert record["step"] == step and record["checkpoint"] == f"checkpoint_{saved}"
    for key, number in (("examples", step - 1), ("examples_of_the_step_before", step - 2)):
        assert [(e["task"], e["example"]) for e in record[key]] == [
            (cache.name, example) for cache, example in batches.examples(number)
        ]
    assert_only_good_checkpoints(tmp_path, saved)
    rows = read_metrics(tmp_path / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(4, step, 4))


def test_a_save_right_after_the_overflow_is_refused(tmp_path):
    schedule = Poisoned(base=1e-2, warmup_steps=2, step=9)  # checkpoint_10 is due after it
    message, record = failed_run(tmp_path, schedule=schedule)
    assert "a parameter is not a number after the update at step 10" in message
    assert record["checkpoint"] == "checkpoint_5"
    assert_only_good_checkpoints(tmp_path, 5)


def test_a_gradient_that_overflows_while_the_loss_does_not(tmp_path):
    # the norm is infinite, so clipping makes every update 0 and the parameters stay good
    message, record = failed_run(tmp_path, loss_normalizing_factor=1e-30)
    assert "training diverged: gradient_norm is inf at step 1;" in message
    assert record["examples_of_the_step_before"] == []
    assert "nothing was saved yet, so the same MODEL_DIR takes another Schedule.base" in message
    schedule = Schedule(base=1e-3, warmup_steps=2)
    assert int(train_tiny(tmp_path, schedule=schedule, total_steps=3).step) == 3


def test_documents_are_named_where_they_are_known(tmp_path):
    codes = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)
    docids = DocidMap(tuple(f"doc{i}" for i in range(27)), codes, (3, 3, 3))
    batches = make_batches(cache=cache_of(docids), target_length=docids.vocabulary.max_tokens)
    schedule = Poisoned(base=1e-2, warmup_steps=2, step=2)
    message, record = failed_run(tmp_path, schedule=schedule, batches=batches, docid_map=docids)
    for entry, (cache, number) in zip(
        record["examples"], batches.examples(record["step"] - 1), strict=True
    ):
        row = docids.tokens[docids.index_of[entry["document"]]]
        assert row[row > 0].tolist() == cache.example("targets", number).tolist()
    assert f"({record['examples'][0]['document']})" in message


class Relabelled(Altered):
    """Batches of which one has other targets: the start of a label shift, or a damaged shard."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def __call__(self, step):
        batch = self.whole(step)
        if step == self.step:
            targets = batch.arrays["decoder_target_tokens"]
            batch.arrays["decoder_target_tokens"] = np.where(targets > 0, 17 - targets, 0)
        return batch


class TestSpike:
    STEP, TOTAL = 93, 100  # from 0
    RUN = {"total_steps": TOTAL, "save_period": 95, "optimizer": Optimizer(b2=0.95)}  # noqa: RUF012

    def test_stops_at_the_step_and_saves_nothing_after_it(self, tmp_path):
        batches = Relabelled(self.STEP)
        message, record = failed_run(tmp_path, batches=batches, spike_factor=2.0, **self.RUN)
        assert f"times its recent median at step {self.STEP + 1};" in message
        assert record["step"] == self.STEP + 1
        assert not list(tmp_path.glob("checkpoint_*")), "checkpoint_95 was due"

    def test_is_seen_soon_after_the_warm_up_that_the_run_has(self, tmp_path):
        """Which is a fifth of a short run, whatever `warmup_steps`; as soon after it goes on."""
        run = self.RUN | {"schedule": Schedule(base=1e-2, warmup_steps=10_000)}
        message, _ = failed_run(tmp_path / "a", batches=Relabelled(50), spike_factor=2.0, **run)
        assert "times its recent median at step 51;" in message

    def test_is_let_through_by_default(self, tmp_path):
        state = train_tiny(tmp_path, batches=Relabelled(self.STEP), **self.RUN)
        assert int(state.step) == self.TOTAL


class TestDetector:
    def metrics(self, loss, norm=1.0) -> StepMetrics:
        sums = LossSums(*4 * [np.zeros(1)])  # pyright: ignore[reportArgumentType]
        return StepMetrics(*(np.float32(x) for x in (loss, 0.0, 0.5, norm)), sums)  # pyright: ignore

    def first(self, losses, factor=2.0, warmup=0):
        detect = FailureDetector(factor, warmup)
        for step, loss in enumerate(losses, 1):
            if detect(step, self.metrics(loss)):
                return step
        return None

    def test_needs_some_losses_after_the_warm_up(self):
        usual = [1.0] * LEAST_LOSSES
        assert self.first([*usual, 2.5]) == LEAST_LOSSES + 1
        assert self.first([*usual[1:], 2.5]) is None
        assert self.first([9.0] * 7 + [*usual, 2.5], warmup=7) == LEAST_LOSSES + 8
        assert self.first([9.0] * 7 + [*usual[1:], 2.5], warmup=7) is None
        assert self.first([*usual, 1.9, 2.0]) is None
        assert self.first([*usual, 1e9], factor=0.0) is None

    def test_is_about_the_recent_median(self):
        falling = [0.98**i for i in range(400)]
        assert self.first(falling) is None
        assert self.first([*falling[:300], falling[150], *falling]) == 301
        # outliers below the factor leave the median where it is
        assert self.first([1.0, 1.9] * SPIKE_WINDOW + [2.5]) is None
        assert self.first([1.0, 1.0, 1.9] * SPIKE_WINDOW + [2.5]) == 3 * SPIKE_WINDOW + 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_a_number_always_fails(self, value):
        detect = FailureDetector(0.0, 100)
        assert detect(1, self.metrics(value)) == f"loss is {value}"
        assert detect(1, self.metrics(1.0, value)) == f"gradient_norm is {value}"
        assert detect(1, self.metrics(1.0)) is None


def test_the_order_of_examples_is_the_batches():
    batches = make_batches(pack=False)
    for step in (0, 7, STEPS):
        arrays = batches(step).arrays
        found = sorted(
            (row[row > 0].tolist(), target[target > 0].tolist())
            for row, target in zip(
                arrays["encoder_input_tokens"], arrays["decoder_target_tokens"], strict=True
            )
        )
        assert found == sorted(
            (cache.example("inputs", n).tolist(), cache.example("targets", n).tolist())
            for cache, n in batches.examples(step)
        )
