"""What is asked for, in names and numbers, as jobs: from gin, or a model's name."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gr_jax import gin_config
from gr_jax.decoding import Trie, TrieShape
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.pipeline import EvalConfig, Workspace, rounded_up, row_multiple
from gr_jax.pipeline import run as run_pipeline
from gr_jax.planning._plan import Job, Log, Plan, make_plan, smallest
from gr_jax.planning._programs import Search, Training, random_docids
from gr_jax.planning._suggest import suggest_search, suggest_training
from gr_jax.planning._topologies import Topology, parse_topology, slices_of
from gr_jax.serving import IndexSpec
from gr_jax.training import Partitioning


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile, for what.

    Attributes:
      topology: name of a slice; or None with `generation`.
      generation: the smallest slice of this generation that holds it.
      num_slices: how many slices.
      model: name of a published T5, in the setting of docs/pods.md; None for gin's configuration.
      gin_files: configuration of a run.
      gin_bindings: more of it.
      gin_search_paths: folders of gin files.
      programs: `train`, `search`.
      batch: rows of a training step; None for gin's batch size (at most so many rows: packing makes
        fewer), and 512 for a named model. A gin run's are rounded up, as the trainer does.
      input_length: tokens of a row; None for gin's, and 128.
      target_length: target tokens of a row; None for gin's, and 8.
      docids: documents of the search where no prepared MODEL_DIR tells.
      levels: of their docids.
      codes: of each level.
      queries: of a search.
      beam: of it.
      tries: how many next settings to try if it is too large.
      hlo: a folder to write compiled programs to.
    """

    topology: str | None = None
    generation: str | None = None
    num_slices: int = 1
    model: str | None = None
    gin_files: Sequence[str] = ()
    gin_bindings: Sequence[str] = ()
    gin_search_paths: Sequence[str] = ()
    programs: Sequence[str] = ("train",)
    batch: int | None = None
    input_length: int | None = None
    target_length: int | None = None
    docids: int = 8_841_823  # MS MARCO's passages
    levels: int = 4
    codes: int = 256
    queries: int = 8
    beam: int = 40
    tries: int = 4
    hlo: Path | None = None

    def __post_init__(self):
        if (self.topology is None) == (self.generation is None):
            raise UserError("give one of --topology=v5e-256 and --smallest=v5e")
        if bool(self.gin_files) == (self.model is not None):
            raise UserError("give one of --gin_file=FILE and --model=t5_1_1_xxl")
        for name in ("batch", "input_length", "target_length", "docids", "levels", "codes",
                     "queries", "beam", "num_slices"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}={value}: at least 1 is needed")


def answer(request: Request, log: Log = lambda _: None) -> list[Plan]:
    """Compiles what is asked for.

    Raises:
      UserError: a name or a number that does not fit, or there is no compiler.
    """
    source = _Gin(request) if request.gin_files else _Named(request)
    if request.hlo is not None:
        request.hlo.mkdir(parents=True, exist_ok=True)
    plans = []
    for program in request.programs:
        job_of, used = source.training, _whole
        if program == "search":
            job_of, used = source.search, source.searched
        hlo = request.hlo and request.hlo / f"{program}.hlo"
        if request.generation is not None:
            slices_of(request.generation)  # a wrong name is refused before anything else
            plan = smallest(
                job_of,
                request.generation,
                slices=request.num_slices,
                tries=request.tries,
                log=log,
                used=used,
                hlo=hlo,
            )
        else:
            assert request.topology is not None
            asked = parse_topology(request.topology, request.num_slices)
            if (topology := used(asked)) != asked:
                log(f"evaluation uses {topology.name} of {asked.name} (EvalConfig.partitioning)")
            plan = make_plan(job_of(topology), topology, tries=request.tries, log=log, hlo=hlo)
        plans.append(plan)
    return plans


def _whole(topology: Topology) -> Topology:
    return topology


class _Named:
    """A published model in the setting of docs/pods.md."""

    def __init__(self, request: Request):
        self.request = request
        self.trie = random_docids(request.docids, request.levels, request.codes)
        tokens = rounded_up(self.trie.vocabulary.size)
        assert request.model is not None
        self.model = T5Config.from_name(request.model, target_vocab_size=tokens)

    def training(self, topology: Topology) -> Job:
        r = self.request
        return suggest_training(
            self.model,
            topology,
            rows=r.batch or 512,
            input_length=r.input_length or 128,
            target_length=r.target_length or 8,
        )

    def search(self, topology: Topology) -> Job:
        r = self.request
        return suggest_search(self.model, topology, self.trie, queries=r.queries, beam=r.beam)

    def searched(self, topology: Topology) -> Topology:
        """A slice as it is asked for: `Plan` says where that is more than one host."""
        return topology


class _Gin:
    """A run's own configuration."""

    def __init__(self, request: Request):
        self.request = request
        _parse(request)
        bound = _bound(("data", "model", "trainer", "evaluation"))
        self.data, self.trainer = bound["data"], bound["trainer"]
        self.evaluation: EvalConfig = bound["evaluation"]
        known = _prepared(_bound(("model_dir",), required=False).get("model_dir"))
        if known is not None:
            self.model, self.trie = known
        else:
            self.trie = random_docids(request.docids, request.levels, request.codes)
            self.model = bound["model"](
                vocab_size=rounded_up(self.data.vocab_size),
                target_vocab_size=rounded_up(self.trie.vocabulary.size),
            )

    def training(self, topology: Topology) -> Job:
        r, data = self.request, self.data
        docid_tokens = self.trie.vocabulary.max_tokens
        shards = max(topology.device_count // self.trainer.partitioning.model_parallel, 1)
        multiple = row_multiple(self.trainer, shards)
        return Training(
            self.model,
            self.trainer,
            rows=-(-(r.batch or data.batch_size) // multiple) * multiple,
            input_length=r.input_length or data.row_length,
            target_length=r.target_length or docid_tokens * (data.max_per_row if data.pack else 1),
            docids=self.trie,
            tasks=self._tasks(),
        )

    def _tasks(self) -> int:
        """Of the mixture that the trainer makes; one of SeqIO's counts as one task."""
        data = self.data
        if data.mixture is not None:
            return 1
        return sum(rate > 0 for rate in (data.index_rate, data.synthetic_rate, data.queries_rate))

    def search(self, topology: Topology) -> Job:
        r, e = self.request, self.evaluation
        partitioning = e.partitioning or Partitioning()
        shards = max(topology.device_count // partitioning.model_parallel, 1)
        return Search(
            self.model,
            self.trie,
            queries=-(-r.queries // shards) * shards,
            input_length=r.input_length or self.data.input_length,
            beam=r.beam,
            score=e.score,
            precision=e.precision or self.model.dtype,  # pyright: ignore[reportArgumentType]
            partitioning=partitioning,
        )

    def searched(self, topology: Topology) -> Topology:
        """What evaluation uses of a slice: one host's devices, or one of them."""
        return topology.one_chip if self.evaluation.partitioning is None else topology.host


def _parse(request: Request) -> None:
    """Reads gin; what a plan does not need, a corpus for one, may be missing."""
    bindings = list(request.gin_bindings)
    while True:
        try:
            gin_config.parse(request.gin_files, bindings, request.gin_search_paths)
            return
        except UserError as error:
            missing = re.match(r"gin: ([A-Z_]+) is required", str(error))
            if missing is None or f"{missing[1]} = None" in bindings:
                raise
            bindings.append(f"{missing[1]} = None")


def _bound(names: Sequence[str], *, required: bool = True) -> dict[str, Any]:
    """Arguments of `pipeline.run` that gin binds; what is not needed may be unset there."""
    import gin

    bindings = gin.get_bindings(gin.get_configurable(run_pipeline), resolve_references=False)
    values = {}
    for name in names:
        if name not in bindings:
            if required:
                raise UserError(f"gin: pipeline.run.{name} is not bound")
            continue
        try:
            values[name] = copy.deepcopy(bindings[name])  # which is how gin resolves a reference
        except UserError:
            raise
        except Exception as error:  # gin raises whatever a constructor does
            if required:
                raise UserError(f"gin: {' '.join(str(error).split())}") from error
    return values


def _prepared(model_dir: Any) -> tuple[T5Config, TrieShape] | None:
    """Model and docids of a directory in which a run has begun."""
    if not isinstance(model_dir, str):
        return None
    workspace = Workspace(model_dir)
    if not workspace.index.exists():
        return None
    trie = Trie.from_docid_map(DocidMap.load(workspace.docids))
    return IndexSpec.load(workspace.index).model, trie.shape.bucketed()
