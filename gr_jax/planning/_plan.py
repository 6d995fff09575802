"""Compiles a program for a slice that is not there, and says what the compiler says of it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from gr_jax.errors import UserError
from gr_jax.planning._costs import program_costs
from gr_jax.planning._hlo import Program
from gr_jax.planning._programs import Search, Training, parameter_count
from gr_jax.planning._roofline import Roofline, roofline
from gr_jax.planning._topologies import Topology, slices_of

Job = Training | Search
Log = Callable[[str], None]

_GIB = 1 << 30
_UNITS = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
_TOO_LARGE = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", re.I)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of one program on one slice; memory is per chip, in GiB.

    Attributes:
      job: what was compiled.
      topology: for what.
      fits: whether it fits.
      peak: memory that it needs.
      arguments: parameters, optimizer state and batch of that; None if it does not fit.
      temporaries: what it allocates beside them, some of it in the place of arguments; or None.
      roofline: None if it does not fit.
      compile_seconds: on this machine.
      instead: the first of the next settings that fits, if this does not and one was found.
    """

    job: Job
    topology: Topology
    fits: bool
    peak: float
    compile_seconds: float
    arguments: float | None = None
    temporaries: float | None = None
    roofline: Roofline | None = None
    instead: Plan | None = None

    @property
    def utilisation(self) -> float | None:
        """Time that the model's FLOPs need at peak, of the roofline's."""
        return None if self.roofline is None else self._ideal / self.roofline.seconds

    @property
    def serial_utilisation(self) -> float | None:
        """The same of the time with no communication hidden."""
        return None if self.roofline is None else self._ideal / self.roofline.serial_seconds

    @property
    def _ideal(self) -> float:
        return self.job.model_flops / self.topology.chips / self.topology.chip.flops

    def record(self) -> dict[str, Any]:
        """All figures, for JSON."""
        r, chip = self.roofline, self.topology.chip
        figures: dict[str, Any] = {
            "program": self.job.name,
            "topology": self.topology.name,
            "shape": self.topology.shape_name,
            "num_slices": self.topology.slices,
            "hosts": self.topology.hosts,
            "chips": self.topology.chips,
            "parameters": parameter_count(self.job.model),
            "settings": self.job.settings,
            "fits": self.fits,
            "peak_gib_per_chip": _rounded(self.peak),
            "arguments_gib_per_chip": _rounded(self.arguments),
            "temporaries_gib_per_chip": _rounded(self.temporaries),
            "chip_gib": chip.memory_gib,
            "model_flops": self.job.model_flops,
            "executed_flops": self.job.executed_flops,
            "step_seconds_roofline": r and r.seconds,
            "step_seconds_serial": r and r.serial_seconds,
            "bound": "memory capacity" if r is None else r.bound,
            "utilisation": _rounded(self.utilisation),
            "utilisation_serial": _rounded(self.serial_utilisation),
            "seconds": r and r.times,
            "collectives": r
            and {
                kind: {"count": round(r.counts[kind]), "gib_sent": _rounded(sent / _GIB)}
                for kind, sent in r.wire_bytes.items()
            },
            "compile_seconds": round(self.compile_seconds, 1),
            "jax": jax.__version__,
        }
        if self.instead is not None:
            figures["instead"] = self.instead.record()
        return figures

    def text(self) -> str:
        """The figures as people read them."""
        t = self.topology
        slices = f" in {t.slices} slices" if t.slices > 1 else ""
        chips = f"{t.chips} chip{'s' if t.chips > 1 else ''}{slices}"
        head = f"{self.job.name} on {t.name} ({chips}, {t.shape_name}): "
        settings = ", ".join(f"{k}={v}" for k, v in self.job.settings.items())
        if isinstance(self.job, Search) and t.hosts > 1:
            settings += (
                f"\n  a program of all {t.hosts} hosts: gr_jax searches on the devices of one "
                f"({t.host.name}) only"
            )
        if self.roofline is None:
            said = f"needs {self.peak:.1f} of {t.chip.memory_gib:g} GiB"
            if self.instead is not None:
                change = _difference(self.job.settings, self.instead.job.settings)
                said += f": try {change} ({self.instead.peak:.1f} GiB)"
            return f"{head}{said}\n  {settings}" + (
                f"\n{self.instead.text()}" if self.instead is not None else ""
            )
        r = self.roofline
        lines = [
            f"{head}{self.peak:.1f} of {t.chip.memory_gib:g} GiB per chip",
            f"  {settings}",
            f"  {parameter_count(self.job.model):,} parameters; {self.arguments:.2f} GiB of "
            f"arguments, {self.temporaries:.2f} GiB of temporaries",
            f"  {self.job.model_flops / 1e12:,.1f} model TFLOP, "
            f"{self.job.executed_flops / 1e12:,.1f} with what is computed twice",
            "  at least " + ", ".join(f"{_time(s)} {name}" for name, s in r.times.items() if s),
            *(
                f"  {kind}: {round(r.counts[kind]):,} times, {sent / 1e9:.2f} GB sent per device"
                for kind, sent in sorted(r.wire_bytes.items())
            ),
            f"  {_time(r.seconds)} if all else hides behind {r.bound} "
            f"({self.utilisation:.0%} of peak), {_time(r.serial_seconds)} if no communication is "
            f"hidden ({self.serial_utilisation:.0%})",
            f"  compiled in {self.compile_seconds:.0f} s",
        ]
        return "\n".join(lines)


def make_plan(
    job: Job,
    topology: Topology,
    *,
    tries: int = 0,
    log: Log = lambda _: None,
    hlo: Path | None = None,
) -> Plan:
    """Compiles a job for a slice.

    Args:
      job: a `Training` or a `Search`.
      topology: the slice.
      tries: where it does not fit, how many of the next settings to try.
      log: told what is compiled.
      hlo: a file to write the compiled program to, as text.

    Raises:
      UserError: there is no compiler or no such slice, the job does not divide by it, or the
        compiler fails.
    """
    devices = topology.devices()
    plan = _compiled(job, topology, devices, log, hlo)
    if plan.fits:
        return plan
    for another in _alternatives(job, topology):
        if not tries:
            break
        try:
            instead = _compiled(another, topology, devices, log, hlo)
        except UserError:
            continue  # does not divide, or the compiler fails: the next one may not
        tries -= 1
        if instead.fits:
            return dataclasses.replace(plan, instead=instead)
    return plan


def smallest(
    job_of: Callable[[Topology], Job],
    generation: str,
    *,
    slices: int = 1,
    tries: int = 0,
    log: Log = lambda _: None,
    used: Callable[[Topology], Topology] = lambda topology: topology,
    hlo: Path | None = None,
) -> Plan:
    """The plan for the smallest slice of a generation that holds a job.

    Args:
      job_of: the job for a slice.
      generation: `v5e` for instance.
      slices: how many slices of a size are one topology.
      tries: see `make_plan`.
      log: told what is compiled.
      used: what of a slice the job runs on.
      hlo: see `make_plan`; the program that fits.

    Raises:
      UserError: no slice holds it.
    """
    last = "nothing could be compiled"
    wanted = (dataclasses.replace(one, slices=slices) for one in slices_of(generation))
    for topology in dict.fromkeys(map(used, wanted)):
        job = job_of(topology)
        if isinstance(job, Training) and not _may_hold(job, topology):
            log(f"{topology.name}: parameters and gradients alone are larger")
            continue
        try:
            plan = make_plan(job, topology, tries=tries, log=log, hlo=hlo)
        except UserError as error:
            last = str(error)
            log(f"{topology.name}: {last}")
            continue
        if plan.fits:
            return plan
        if plan.instead is not None:
            return plan.instead
        last = f"{topology.name} would need {plan.peak:.1f} GiB per chip"
    raise UserError(f"no slice of {generation} holds it: {last}")


def _may_hold(job: Training, topology: Topology) -> bool:
    """Whether float32 parameters and gradients, spread over a slice's chips, leave any room."""
    needed = 8 * parameter_count(job.model) / _GIB
    return needed < topology.chip.memory_gib * topology.chips / topology.slices


def _compiled(job: Job, topology: Topology, devices: list[Any], log: Log, hlo: Path | None) -> Plan:
    log(f"compiling {job.name} for {topology.name}: {_difference({}, job.settings)}")
    began = time.perf_counter()
    chip = topology.chip
    try:
        lowered, order = job.lower(devices)
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_memory(str(error))
        if needed is None:
            line = " ".join(str(error).split())
            raise UserError(
                f"the TPU compiler fails on this {job.name} program for {topology.name}: "
                f"{line[:300]}"
            ) from error
        seconds = time.perf_counter() - began
        return Plan(job, topology, False, needed * chip.devices, seconds)
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    if hlo is not None:
        hlo.write_text(text, "utf-8")
    memory = compiled.memory_analysis()
    costs = program_costs(Program(text))
    if costs.unknown_loops:
        log(f"{costs.unknown_loops} loops of unknown length are counted once")
    return Plan(
        job,
        topology,
        True,
        peak=memory.peak_memory_in_bytes * chip.devices / _GIB,
        arguments=memory.argument_size_in_bytes * chip.devices / _GIB,
        temporaries=memory.temp_size_in_bytes * chip.devices / _GIB,
        roofline=roofline(
            costs,
            device_flops=job.executed_flops / len(devices),
            devices=order,
            topology=topology,
        ),
        compile_seconds=seconds,
    )


def needed_memory(message: str) -> float | None:
    """GiB per device that a compiler's refusal names; None if it is about something else."""
    if found := _TOO_LARGE.search(message) or _USED.search(message):
        return float(found[1]) * _UNITS[found[2]]
    return None


def _alternatives(job: Job, topology: Topology) -> Iterator[Job]:
    """Settings that need less memory, those that cost least first, each on top of the last."""
    if isinstance(job, Training):
        yield from _trainings(job, topology)
        return
    model_parallel = job.partitioning.model_parallel * 2
    while model_parallel <= job.model.num_heads:
        partitioning = dataclasses.replace(job.partitioning, model_parallel=model_parallel)
        yield dataclasses.replace(job, partitioning=partitioning)
        model_parallel *= 2


def _trainings(job: Training, topology: Topology) -> Iterator[Training]:
    model, trainer, partitioning = job.model, job.trainer, job.partitioning
    if partitioning.parameter_partitions == 1 and topology.chips > 1:
        partitioning = dataclasses.replace(partitioning, parameter_partitions=2)
        trainer = dataclasses.replace(trainer, partitioning=partitioning)
        yield dataclasses.replace(job, trainer=trainer)
    if model.remat != "full":
        model = dataclasses.replace(model, remat="full", scan_layers=True)
        yield dataclasses.replace(job, model=model, trainer=trainer)
    shards = topology.device_count // partitioning.model_parallel
    while job.rows % (trainer.microbatches * 2 * shards) == 0:
        trainer = dataclasses.replace(trainer, microbatches=trainer.microbatches * 2)
        yield dataclasses.replace(job, model=model, trainer=trainer)


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    changes = [f"{k}={v}" for k, v in after.items() if before.get(k) != v or k not in before]
    return ", ".join(changes)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
