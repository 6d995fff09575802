"""How to lay out a run on a slice, by a formula: before anything is compiled, to be compiled then.

What each layer exchanges decides it. With a `model` axis of size M and D data shards, a layer's
outputs are summed over M (twice forward and twice backward, three times in a decoder), which grows
with the tokens of a data shard; its weights are gathered over D (forward, and again backward) and
their gradients scattered, which shrinks with M. The M whose longest time is least is taken.
"""

from __future__ import annotations

import dataclasses

from gr_jax.decoding import TrieShape
from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.planning._programs import Search, Training, parameter_count
from gr_jax.planning._roofline import ring_rate
from gr_jax.planning._topologies import Topology
from gr_jax.training import Optimizer, Partitioner, Partitioning, TrainConfig

_ROOM = 0.8  # of a chip's memory, for an estimate


def suggest_training(
    model: T5Config,
    topology: Topology,
    *,
    rows: int = 512,
    input_length: int = 128,
    target_length: int = 8,
) -> Training:
    """The setting of the table in docs/pods.md for a model on a slice.

    bfloat16 activations, Adafactor, all parameters split; the mesh and rematerialisation by
    estimate.

    Raises:
      UserError: no mesh of the slice divides the model and the batch.
    """
    best: tuple[float, Training] | None = None
    devices = topology.devices()
    for m in (2**i for i in range(len(devices).bit_length())):
        shards = len(devices) // m
        if len(devices) % m or model.num_heads % m or rows % shards:
            continue
        partitioning = Partitioning(model_parallel=m, parameter_partitions=2)
        try:
            mesh = Partitioner.make(partitioning, devices).mesh
        except UserError:
            continue
        job = Training(
            dataclasses.replace(model, dtype="bfloat16", scan_layers=True, remat="minimal"),
            TrainConfig(optimizer=Optimizer(name="adafactor"), partitioning=partitioning),
            rows,
            input_length,
            target_length,
        )
        if not _roomy(job, topology, len(devices)):
            job = dataclasses.replace(job, model=dataclasses.replace(job.model, remat="full"))
        seconds = _seconds(job, topology, mesh)
        if best is None or seconds < best[0]:
            best = seconds, job
    if best is None:
        raise UserError(
            f"{topology.name}: no mesh of its {len(devices)} devices divides {model.num_heads} "
            f"heads and {rows} rows"
        )
    return best[1]


def suggest_search(
    model: T5Config, topology: Topology, trie: TrieShape, *, queries: int = 8, beam: int = 40
) -> Search:
    """The setting of the table in docs/pods.md for a search: the smallest `model` axis that fits.

    Raises:
      UserError: no mesh of the slice divides the model and the queries.
    """
    devices = topology.devices()
    for m in (2**i for i in range(len(devices).bit_length())):
        shards = len(devices) // m
        if len(devices) % m or model.num_heads % m:
            continue
        partitioning = Partitioning(model_parallel=m)
        try:
            Partitioner.make(partitioning, devices)
        except UserError:
            continue
        weights = 2 * parameter_count(model) / m / 2**30 * topology.chip.devices
        # the docids: a few integers of 4 bytes each
        docids = 24 * trie.docids / 2**30 * topology.chip.devices
        if weights + docids < _ROOM * topology.chip.memory_gib:
            each = -(-queries // shards) * shards
            return Search(model, trie, queries=each, beam=beam, partitioning=partitioning)
    raise UserError(f"{topology.name}: no mesh of its {len(devices)} devices holds the weights")


def _roomy(job: Training, topology: Topology, devices: int) -> bool:
    """Whether keeping the products with parameters for the backward pass leaves room."""
    c = job.model
    joined = c.num_heads * c.head_dim
    # bytes per token and layer that are split over `model`, and those that are not
    split = 2 * (3 * joined + len(c.mlp_activations) * c.mlp_dim)
    whole = 2 * 3 * c.emb_dim
    m = job.partitioning.model_parallel
    tokens = job.rows * m / devices
    layers = tokens * (
        job.input_length * c.num_encoder_layers + job.target_length * c.num_decoder_layers
    )
    # keys and values of the encoder's output
    cross = tokens * job.input_length * c.num_decoder_layers * 4 * joined / m
    kept = layers * (split / m + whole) + cross
    # parameters and gradients in float32, parameters in bfloat16
    state = 10 * parameter_count(c) / devices
    room = _ROOM * topology.chip.memory_gib * 2**30 / topology.chip.devices
    return state + 1.5 * kept < room


def _seconds(job: Training, topology: Topology, mesh: object) -> float:
    """The longest of the times for products, sums of activations, and weights."""
    c, chip = job.model, topology.chip
    grid = mesh.devices[0]  # pyright: ignore[reportAttributeAccessIssue]  # [data, model]
    data, m = grid.shape
    compute = job.executed_flops / topology.chips / chip.flops
    share = job.rows / mesh.devices.size * m  # pyright: ignore[reportAttributeAccessIssue]
    sums = 4 * c.num_encoder_layers * job.input_length + c.num_decoder_layers * (
        6 * job.target_length + job.input_length
    )
    again = 1.5 if c.remat == "full" else 1.0
    outputs = share * sums * again * c.emb_dim * 2 * 2 * (m - 1) / m
    weights = 3 * 2 * parameter_count(c) / m * (data - 1) / data
    times = [compute]
    for size, members in ((outputs, grid[0]), (weights, grid[:, 0])):
        rate = ring_rate(list(members), topology)
        times.append(size / rate if rate else 0.0)
    # what is not hidden counts too
    return max(times) + 0.5 * sum(times)
