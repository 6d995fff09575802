"""The programs that are planned: the trainer's own step, and the search, from abstract arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from gr_jax.decoding import Score, Trie, TrieShape
from gr_jax.decoding._beam import _program
from gr_jax.decoding._core import beam_widths
from gr_jax.errors import UserError
from gr_jax.models import (
    Precision,
    T5Config,
    count_parameters,
    decoding_flops,
    init_parameters,
    prepare_inference,
    recomputation_flops,
    training_flops,
)
from gr_jax.planning._restriction import abstract_restriction
from gr_jax.training import Partitioner, Partitioning, TrainConfig
from gr_jax.training._restriction import Restriction
from gr_jax.training._step import abstract_state, train_step


@dataclasses.dataclass(frozen=True)
class Training:
    """One step of training.

    Attributes:
      model: the model.
      trainer: how it is trained.
      rows: of a step's batch.
      input_length: tokens of a row's source.
      target_length: tokens of a row's target.
      docids: what a softmax that is restricted is restricted to; every device has all of them.
      tasks: of the mixture, whose losses are told apart.
    """

    model: T5Config
    trainer: TrainConfig
    rows: int = 512
    input_length: int = 128
    target_length: int = 8
    docids: TrieShape | None = None
    tasks: int = 1

    name = "train"

    @property
    def partitioning(self) -> Partitioning:
        """How it is spread over devices."""
        return self.trainer.partitioning

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "rows": self.rows,
            "input_length": self.input_length,
            "target_length": self.target_length,
        }

    @property
    def model_flops(self) -> float:
        """See `training_flops`."""
        return training_flops(self.model, **self._sizes)

    @property
    def executed_flops(self) -> float:
        """With what is computed twice."""
        return self.model_flops + recomputation_flops(self.model, **self._sizes)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the plan, for people."""
        p = self.partitioning
        return self._sizes | {
            "model_parallel": p.model_parallel,
            "parameter_partitions": p.parameter_partitions,
            "activation_partitions": p.activation_partitions,
            "microbatches": self.trainer.microbatches,
            "remat": self.model.remat,
            "scan_layers": self.model.scan_layers,
            "dtype": self.model.dtype,
            "dropout_rate": self.model.dropout_rate,
            "softmax": self.trainer.softmax,
            "optimizer": self.trainer.optimizer.name,
            "ema": self.trainer.ema_decay > 0,
        }

    def lower(self, devices: Sequence[Any]) -> tuple[Any, list[Any]]:
        """The program before compilation, and the devices in the order of its partitions.

        Raises:
          UserError: the model or the batch does not divide by the mesh.
          ValueError: a restricted softmax without docids.
        """
        partitioner = Partitioner.make(self.partitioning, devices)
        shards = partitioner.data_parallel * self.trainer.microbatches
        if self.rows % shards:
            raise UserError(
                f"a batch of {self.rows} rows does not divide by {partitioner.data_parallel} data "
                f"shards times {self.trainer.microbatches} microbatches"
            )
        optimizer = self.trainer.optimizer.make()
        state = abstract_state(self.model, optimizer, partitioner, ema=self.trainer.ema_decay > 0)
        # made here: under a mesh of devices that are not there, nothing can be computed
        key = jax.eval_shape(lambda: jax.random.key(0))
        everywhere = partitioner.replicated
        restriction = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            self._restriction(),
        )
        with jax.set_mesh(partitioner.mesh):
            lowered = train_step.lower(
                state,
                self._batch(partitioner),
                jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere),
                jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere),
                restriction,
                config=self.model,
                optimizer=optimizer,
                partitioner=partitioner,
                label_smoothing=self.trainer.label_smoothing,
                z_loss=self.trainer.z_loss,
                loss_normalizing_factor=self.trainer.loss_normalizing_factor,
                ema_decay=self.trainer.ema_decay,
                microbatches=self.trainer.microbatches,
                num_tasks=self.tasks,
            )
        return lowered, list(partitioner.mesh.devices.flat)

    def _restriction(self) -> Restriction | None:
        softmax = self.trainer.softmax
        if softmax == "full":
            return None
        if self.docids is None:
            raise ValueError(f"softmax={softmax!r} needs the docids")
        return abstract_restriction(softmax, self.docids)

    def _batch(self, partitioner: Partitioner) -> dict[str, Any]:
        lengths = {"encoder": self.input_length, "decoder": self.target_length}
        names = [f"{side}_{what}" for side in lengths for what in ("input_tokens", "segment_ids")]
        return {
            name: jax.ShapeDtypeStruct(
                (self.rows, lengths[name.partition("_")[0]]), jnp.int32, sharding=partitioner.batch
            )
            for name in (*names, "decoder_target_tokens", "decoder_task_ids")
        }


@dataclasses.dataclass(frozen=True)
class Search:
    """One batch of queries, from source tokens to ranked documents.

    Attributes:
      model: the model.
      trie: the docids; every device has all of them.
      queries: of a batch.
      input_length: tokens of a query.
      beam: width of the search; as many documents are returned.
      score: see `BeamSearch`.
      precision: of weights and activations.
      partitioning: how the weights are spread over devices.
    """

    model: T5Config
    trie: TrieShape
    queries: int = 8
    input_length: int = 32
    beam: int = 40
    score: Score = "children"
    precision: Precision = "bfloat16"
    partitioning: Partitioning = dataclasses.field(default_factory=Partitioning)

    name = "search"

    @property
    def model_flops(self) -> float:
        """Of a search that leaves nothing out: all levels, all beams."""
        widths = beam_widths(self.trie, self.score, self.beam)
        steps = widths[: len(self.trie.vocabulary.level_sizes)]
        outputs = None if self.score == "full" else self.trie.vocabulary.level_sizes
        return decoding_flops(
            self.model,
            rows=self.queries,
            input_length=self.input_length,
            widths=steps,
            outputs=outputs,
        )

    @property
    def executed_flops(self) -> float:
        """The same: nothing is computed twice."""
        return self.model_flops

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the plan, for people."""
        return {
            "queries": self.queries,
            "input_length": self.input_length,
            "beam": self.beam,
            "score": self.score,
            "precision": self.precision,
            "docids": self.trie.docids,
            "levels": len(self.trie.vocabulary.level_sizes),
            "model_parallel": self.partitioning.model_parallel,
            "parameter_partitions": self.partitioning.parameter_partitions,
        }

    def lower(self, devices: Sequence[Any]) -> tuple[Any, list[Any]]:
        """The program before compilation, and the devices in the order of its partitions.

        Raises:
          UserError: the model or the batch does not divide by the mesh.
        """
        partitioner = Partitioner.make(self.partitioning, devices)
        if self.queries % partitioner.data_parallel:
            raise UserError(
                f"a batch of {self.queries} queries does not divide by "
                f"{partitioner.data_parallel} data shards"
            )
        everywhere = partitioner.replicated
        trie = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            Trie.abstract(self.trie),
        )
        source = jax.ShapeDtypeStruct(
            (self.queries, self.input_length), jnp.int32, sharding=partitioner.batch
        )
        program: Any = _program("tpu")
        lowered = program.lower(
            search_weights(self.model, partitioner, self.precision),
            trie,
            source,
            None,
            None,
            beam=self.beam,
            k=self.beam,
            score=self.score,
            ends="all",
            mesh=partitioner.mesh,
        )
        return lowered, list(partitioner.mesh.devices.flat)


def search_weights(config: T5Config, partitioner: Partitioner, precision: Precision) -> Any:
    """Shapes and shardings of what `prepare_inference` makes of sharded parameters.

    Which sharding each weight gets is the compiler's to say. It is asked about a model of one layer
    per stack, in seconds; those of all layers are alike.
    """
    config = dataclasses.replace(config, scan_layers=False, remat="none")
    one = dataclasses.replace(config, num_encoder_layers=1, num_decoder_layers=1)

    def parameters(model: T5Config) -> Any:
        return jax.eval_shape(lambda: init_parameters(model, jax.random.key(0)))

    sharded = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        parameters(one),
        partitioner.parameters(one),
    )
    prepare = jax.jit(lambda parameters: prepare_inference(one, parameters, precision))
    shardings = prepare.lower(sharded).compile().output_shardings
    encoder, decoder = shardings.encoder, shardings.decoder
    shardings = dataclasses.replace(
        shardings,
        config=dataclasses.replace(config, dtype="bfloat16" if precision == "int8" else precision),
        encoder=encoder._replace(layers=encoder.layers * config.num_encoder_layers),
        decoder=decoder._replace(layers=decoder.layers * config.num_decoder_layers),
    )
    shapes = jax.eval_shape(lambda p: prepare_inference(config, p, precision), parameters(config))

    def place(shape: Any, sharding: Any) -> Any:
        # a compiled program names shardings by device, the search wants the mesh's axes
        if not isinstance(sharding, NamedSharding):
            sharding = NamedSharding(partitioner.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, shardings)


@functools.lru_cache(maxsize=8)
def parameter_count(model: T5Config) -> int:
    """Parameters of a model."""
    return count_parameters(jax.eval_shape(lambda: init_parameters(model, jax.random.key(0))))


def random_docids(documents: int, levels: int, codes: int) -> TrieShape:
    """The shape, expected, of a trie of random docids: as many documents, none with another's.

    Args:
      documents: of the corpus.
      levels: of its docids, which all have as many codes.
      codes: of each level.

    Raises:
      UserError: there are not as many docids.
    """
    from gr_jax.docids import DocidVocabulary

    if documents > codes**levels:
        raise UserError(
            f"{levels} levels of {codes} codes name {codes**levels:,} documents at most"
        )
    nodes, branches, lone = [], [], 0.0
    for level in range(levels):
        places = float(codes) ** (level + 1)
        per_place = documents / places
        distinct = -places * math.expm1(-per_place) if level + 1 < levels else float(documents)
        # below a prefix with one document nothing is stored: the rest of its docid is its tail
        nodes.append(max(round(distinct - lone), 1))
        lone = documents * math.exp(-per_place)
        branching = max(round(distinct - lone), 0)
        if level + 1 == levels or not branching:
            break
        branches.append(branching)
    stored = len(nodes)
    alone = [level for level in range(stored) if documents * math.exp(
        -documents / float(codes) ** (level + 1)) >= 1
    ]  # fmt: skip
    return TrieShape(
        vocabulary=DocidVocabulary((codes,) * levels),
        nodes=tuple(nodes),
        branches=tuple(branches),
        fan_outs=(min(codes, documents),) * stored,
        ends=(False,) * (levels - 1) + (True,),
        tail_start=min([*(level + 1 for level in alone), levels]),
        docids=documents,
        documents=documents,
        unique=True,
    ).bucketed()
