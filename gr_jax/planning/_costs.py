"""What one device does in one run of a compiled program: bytes of memory, and collectives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from gr_jax.planning._hlo import Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CROSS_SLICE = "cross-slice-"
# what takes no traffic of its own: names for values, or bodies that are counted by themselves
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while",
    "conditional", "call", "partition-id", "replica-id", "opt-barrier", "iota", "domain",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATE = "dynamic-update-slice"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: one of `KINDS`, which are within a slice; between slices `CROSS_SLICE` and what the
        compiler calls it: all-reduce, all-gather, reduce-scatter, all-to-all, one-to-one.
      operand_bytes: what a device hands in.
      groups: who takes part, as text (`replica_groups` or `source_target_pairs`; between slices the
        runtime's).
    """

    kind: str
    operand_bytes: int
    groups: str


@dataclasses.dataclass
class Costs:
    """Of a computation and all that it runs.

    Attributes:
      memory_bytes: read from and written to main memory.
      collectives: how often each is done.
      unknown_loops: loops counted once, since their number of turns is not in the text.
    """

    memory_bytes: float = 0.0
    collectives: dict[Collective, float] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0

    def add(self, other: Costs, times: float = 1) -> None:
        """Adds another computation's, run some times."""
        self.memory_bytes += times * other.memory_bytes
        for collective, count in other.collectives.items():
            self.collectives[collective] = self.collectives.get(collective, 0) + times * count
        self.unknown_loops += other.unknown_loops


def program_costs(program: Program) -> Costs:
    """The costs of a whole program: bodies of loops times their turns, the costliest branches.

    An instruction's traffic is its operands and its result, of slices and in-place updates only the
    part that is touched; what stays in memory on the chip is not counted. It is what the program
    would move if nothing else was kept on the chip between two instructions.
    """
    return _computation_costs(program, program.computations[program.entry], {})


def _computation_costs(program: Program, computation: Computation, done: dict[str, Costs]) -> Costs:
    if computation.name in done:
        return done[computation.name]
    costs = Costs()
    for instruction in computation:
        if instruction.opcode == "while":
            turns = program.trips(instruction, computation)
            body = program.computations[instruction.called("body")]
            costs.add(_computation_costs(program, body, done), 1 if turns is None else turns)
            costs.unknown_loops += turns is None
        elif instruction.opcode == "conditional":
            each = [
                _computation_costs(program, program.computations[name], done)
                for name in instruction.branches()
            ]
            costs.add(max(each, key=lambda branch: branch.memory_bytes, default=Costs()))
        elif instruction.opcode == "call":
            callee = program.computations[instruction.called("to_apply")]
            costs.add(_computation_costs(program, callee, done))
        else:
            costs.memory_bytes += _traffic(program, computation, instruction)
    # the parts of one asynchronous exchange, in several fusions, have one channel
    for collective in dict(_collectives(program, computation)).values():
        costs.collectives[collective] = costs.collectives.get(collective, 0) + 1
    done[computation.name] = costs
    return costs


def _collectives(
    program: Program, computation: Computation
) -> Iterator[tuple[tuple[str, str], Collective]]:
    """The exchanges of a computation and of its fusions, each with what identifies it."""
    for instruction in computation:
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            where = channel[1] if channel else f"{computation.name}/{instruction.name}"
            if "all-reduce-scatter" in computation.name:  # how the TPU's compiler writes one
                kind = "reduce-scatter"
            groups = re.search(
                r"(?:replica_groups|source_target_pairs)=(.*?)(?:, [a-z_]+=|$)",
                instruction.attributes,
            )
            size = sum(_size_of(computation, name) for name in instruction.operands)
            yield (kind, where), Collective(kind, size, groups[1] if groups else "")
        elif instruction.opcode == "send" and "xla_megascale_runtime" in instruction.attributes:
            where = f"{computation.name}/{instruction.name}"
            yield ("send", where), _between_slices(computation, instruction)
        elif instruction.opcode in ("fusion", "async-start", "custom-call"):
            name = instruction.called("calls")
            if name in program.computations:
                yield from _collectives(program, program.computations[name])


def _between_slices(computation: Computation, send: Instruction) -> Collective:
    """An exchange over the network: the TPU's compiler makes it a send to a runtime on the host.

    The runtime (Megascale) is told in attributes what the sends of all devices are together. What
    can be exchanged within a slice first has been, in collectives of its own.
    """

    def told(name: str) -> str:
        value = re.search(rf'_xla_megascale_{name}=(?:"([^"]*)"|(\{{.*?\}}\}}))', send.attributes)
        return (value[1] or value[2]) if value else ""

    kind = CROSS_SLICE + told("transfer_type").lower().replace("_", "-")
    return Collective(kind, _size_of(computation, send.operands[0]), told("target"))


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes between main memory and the chip for one instruction."""
    opcode = instruction.opcode
    if (
        opcode in _FREE
        or opcode.endswith(("-done", "-update"))
        or "ConcatBitcast" in instruction.attributes
    ):
        return 0
    callee = program.computations.get(instruction.called("calls"))
    written = _in_main(instruction)
    if opcode in ("copy-start", "slice-start"):  # between the two memories, or within one
        moved = instruction.pieces()[1 if opcode == "slice-start" else 0].bytes
        return moved * sum(piece.main_memory for piece in instruction.pieces()[:2])
    if opcode.endswith("-start"):  # (operands, results, bookkeeping)
        written = written // 2
    if opcode == "send":  # its result is its operand
        written = 0
    if callee is not None:
        written = _written(callee, callee.result()) if written else 0
    elif opcode == _UPDATE:
        written = _size_of(computation, instruction.operands[1])
    read = 0
    for number, name in enumerate(instruction.operands):
        operand = computation.instructions.get(name)
        if operand is None or not _in_main(operand):
            continue
        if callee is not None:
            read += min(_in_main(operand), _read(program, callee, number))
        elif opcode in _SLICES and number == 0:
            read += instruction.pieces()[0].bytes
        elif opcode == _UPDATE and number == 0:
            continue
        else:
            read += _in_main(operand)
    return read + written


def _in_main(instruction: Instruction) -> int:
    return sum(piece.bytes for piece in instruction.pieces() if piece.main_memory)


def _size_of(computation: Computation, name: str) -> int:
    instruction = computation.instructions.get(name)
    return sum(piece.bytes for piece in instruction.pieces()) if instruction else 0


def _read(program: Program, callee: Computation, number: int) -> int:
    """Bytes that a fusion reads of an argument."""
    parameter = callee.parameter(number)
    return 0 if parameter is None else _read_of(program, callee, parameter)


def _read_of(program: Program, callee: Computation, value: Instruction) -> int:
    whole = sum(piece.bytes for piece in value.pieces())
    total = 0
    for user in callee.users.get(value.name, []):
        first = user.operands[0] == value.name
        if user.opcode in _SLICES and first:
            total += user.pieces()[0].bytes
        elif user.opcode == _UPDATE and first:
            continue  # in place
        elif user.opcode == "bitcast":
            total += _read_of(program, callee, user)
        elif user.opcode == "fusion" and (inner := program.computations.get(user.called("calls"))):
            total += _read(program, inner, user.operands.index(value.name))
        else:
            return whole
    return min(total, whole)


def _written(callee: Computation, result: Instruction) -> int:
    """Bytes that a fusion writes: of an in-place update, the new part."""
    if result.opcode == "tuple":
        return sum(_written(callee, callee.instructions[name]) for name in result.operands)
    if result.opcode == "bitcast":
        return _written(callee, callee.instructions[result.operands[0]])
    if result.opcode == _UPDATE:
        return _size_of(callee, result.operands[1])
    if result.opcode == "parameter":  # handed through
        return 0
    return _in_main(result)
