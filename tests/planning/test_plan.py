"""Plans without a compiler: what is too large, what is tried next, what is said."""

import dataclasses
import json
import math

import jax
import pytest

from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.planning import (
    Search,
    Training,
    make_plan,
    needed_memory,
    parse_topology,
    random_docids,
    smallest,
)
from gr_jax.planning import _plan as plan_module
from gr_jax.planning._programs import parameter_count
from gr_jax.planning._request import Request, answer
from gr_jax.planning._topologies import Topology
from gr_jax.training import TrainConfig

MODEL = T5Config(
    vocab_size=128,
    target_vocab_size=128,
    emb_dim=16,
    num_heads=8,
    head_dim=4,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
TRIE = random_docids(1000, 3, 16)
REFUSED = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries ({}G) exceeds available HBM (15.75G). HLO module: jit__lambda."
)


@pytest.fixture
def no_compiler(monkeypatch):
    """Slices without devices, and a compiler that only looks at the settings."""
    monkeypatch.setattr(Topology, "devices", lambda self: [None] * self.chips)
    compiled = []

    def compile_as(fits):
        def fake(job, topology, devices, log, hlo):
            del devices, log
            compiled.append(job.settings)
            ok = fits(job, topology)
            if ok and hlo is not None:
                hlo.write_text(topology.name)
            return plan_module.Plan(job, topology, ok, 10.0 if ok else 21.25, 1.0)

        monkeypatch.setattr(plan_module, "_compiled", fake)
        return compiled

    return compile_as


def test_the_memory_that_a_refusal_names():
    assert needed_memory(REFUSED.format("36.52")) == 36.52
    assert needed_memory("Used 3.5T of 15.75G hbm. Exceeded hbm capacity by ...") == 3.5 * 1024
    assert needed_memory("INTERNAL: something else") is None


class Broken:
    """A program that the compiler does not take."""

    def compile(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\n  in a fusion")


def test_another_failure_of_the_compiler_is_one_line_and_not_called_too_large(monkeypatch):
    job = Training(MODEL, TrainConfig())
    monkeypatch.setattr(Training, "lower", lambda self, devices: (Broken(), devices))
    monkeypatch.setattr(Topology, "devices", lambda self: [])
    with pytest.raises(UserError, match="fails on this train program for v5e-8") as failed:
        make_plan(job, parse_topology("v5e-8"))
    assert str(failed.value).endswith(": INTERNAL: Mosaic failed in a fusion")


def test_a_setting_on_which_the_compiler_fails_is_passed_over(monkeypatch):
    tried = []

    class Large:
        def compile(self):
            raise jax.errors.JaxRuntimeError(REFUSED.format("36.52"))

    def lower(self, devices):
        tried.append((self.settings["parameter_partitions"], self.settings["microbatches"]))
        return (Broken() if len(tried) == 2 else Large()), devices

    monkeypatch.setattr(Training, "lower", lower)
    monkeypatch.setattr(Topology, "devices", lambda self: [])
    plan = make_plan(Training(MODEL, TrainConfig()), parse_topology("v5e-8"), tries=2)
    assert (plan.fits, plan.peak) == (False, 36.52)
    assert tried == [(1, 1), (2, 1), (2, 1), (2, 2)]  # a failure is no try


def test_too_large_is_an_answer_with_the_next_setting_that_fits(no_compiler):
    tried = no_compiler(lambda job, _: job.settings["microbatches"] >= 4)
    plan = make_plan(Training(MODEL, TrainConfig()), parse_topology("v5e-8"), tries=9)
    assert not plan.fits
    assert [(t["parameter_partitions"], t["remat"], t["microbatches"]) for t in tried] == [
        (1, "none", 1),
        (2, "none", 1),
        (2, "full", 1),
        (2, "full", 2),
        (2, "full", 4),
    ]
    text = plan.text()
    assert "needs 21.2 of 15.75 GiB: try parameter_partitions=2, microbatches=4" in text
    assert "remat=full" in text
    assert "Traceback" not in text
    record = json.loads(json.dumps(plan.record()))
    assert record["bound"] == "memory capacity"
    assert record["fits"] is False
    assert record["peak_gib_per_chip"] == 21.25
    assert record["instead"]["settings"]["microbatches"] == 4


def test_tries_are_as_many_as_asked_for(no_compiler):
    tried = no_compiler(lambda *_: False)
    plan = make_plan(Training(MODEL, TrainConfig()), parse_topology("v5e-8"), tries=2)
    assert (len(tried), plan.instead) == (3, None)
    assert make_plan(Search(MODEL, TRIE), parse_topology("v5e-8"), tries=1).instead is None
    assert tried[-1]["model_parallel"] == 2


def test_the_smallest_slice_that_holds_it(no_compiler):
    no_compiler(lambda _, topology: topology.chips >= 32)
    plan = smallest(lambda _: Training(MODEL, TrainConfig()), "v5e")
    assert plan.topology.name == "v5e-32"
    no_compiler(lambda *_: False)
    with pytest.raises(UserError, match=r"no slice of v6e holds it: v6e-256 would need 21\.2 GiB"):
        smallest(lambda _: Training(MODEL, TrainConfig()), "v6e")


def test_the_smallest_of_what_a_job_uses(no_compiler):
    """Each once: the hosts of most slices are alike."""
    tried = no_compiler(lambda *_: False)
    with pytest.raises(UserError, match="no slice of v5e holds it: v5e-8 would need"):
        smallest(lambda _: Search(MODEL, TRIE), "v5e", used=lambda topology: topology.host)
    assert len(tried) == 3


def test_a_search_of_several_hosts_is_called_one(no_compiler):
    no_compiler(lambda *_: True)
    for job, name, hosts in (
        (Search(MODEL, TRIE), "v5p-16", 2),
        (Search(MODEL, TRIE), "v5e-8", 1),
        (Training(MODEL, TrainConfig()), "v5e-16", 4),
    ):
        plan = make_plan(job, parse_topology(name))
        assert plan.record()["hosts"] == hosts
        said = "all 2 hosts: gr_jax searches on the devices of one (v5p-8) only" in plan.text()
        assert said == (name == "v5p-16")


def test_the_smallest_of_several_slices_and_its_program(no_compiler, tmp_path):
    no_compiler(lambda job, topology: job.settings["rows"] == 32 * topology.slices)
    request = Request(
        generation="v5e",
        num_slices=2,
        gin_files=("gin/runs/beir.gin", "gin/models/t5_1_1_tiny.gin"),
        batch=64,
        hlo=tmp_path / "programs",
    )
    (plan,) = answer(request)
    assert (plan.topology.name, plan.topology.slices) == ("v5e-1", 2)
    assert (tmp_path / "programs" / "train.hlo").read_text() == "v5e-1"


def test_a_slice_holds_all_parameters(no_compiler):
    no_compiler(lambda *_: True)
    model = T5Config.from_name("t5_1_1_xxl", target_vocab_size=2176)
    plan = smallest(lambda _: Training(model, TrainConfig()), "v5e", slices=2)
    assert (plan.topology.name, plan.topology.slices) == ("v5e-8", 2)  # not half in each of v5e-4


def test_slices_whose_memory_the_parameters_fill_are_not_compiled_for(no_compiler):
    tried = no_compiler(lambda *_: True)
    model = T5Config.from_name("t5_1_1_xxl", target_vocab_size=2176)
    plan = smallest(lambda _: Training(model, TrainConfig()), "v5e")
    assert plan.topology.name == "v5e-8"
    assert len(tried) == 1


def test_parameters_are_counted_without_making_them():
    assert parameter_count(T5Config.from_name("t5_1_1_xxl")) == 11_135_332_352


def test_a_batch_that_does_not_divide_is_refused():
    job = Training(MODEL, dataclasses.replace(TrainConfig(), microbatches=3), rows=512)
    with pytest.raises(UserError, match="512 rows does not divide by 8 data shards times 3"):
        job.lower(jax.devices())
    with pytest.raises(UserError, match="3 queries does not divide by 8"):
        Search(MODEL, TRIE, queries=3).lower(jax.devices())


def test_the_programs_are_the_real_ones():
    """On the CPU's devices, which compile and would run them."""
    lowered, devices = Training(MODEL, TrainConfig(), rows=16).lower(jax.devices())
    assert len(devices) == 8
    assert "train_step" in lowered.as_text()[:200]
    state = lowered.args_info[0][0]
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)) == parameter_count(MODEL)
    lowered, _ = Search(MODEL, TRIE, precision="float32").lower(jax.devices())
    assert "search" in lowered.as_text()[:200]
