"""A compiled program as text, read: its computations, instructions, and how often loops run."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {
    "pred": 8, "token": 0, "opaque": 0,
    "s2": 2, "u2": 2, "s4": 4, "u4": 4, "f4e2m1fn": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<= ]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")


class Piece(NamedTuple):
    """One array of a shape.

    Attributes:
      bytes: its size.
      main_memory: whether it lies in the device's main memory, not in one that is on the chip.
    """

    bytes: int
    main_memory: bool


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      shape: as text; of several arrays for a tuple.
      opcode: `fusion`, `all-gather-start`, ...
      operands: names of instructions of the same computation.
      inside: the text between the parentheses: a parameter's number, a constant's value.
      attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    attributes: str

    def pieces(self) -> list[Piece]:
        """The arrays of the result."""
        return pieces(self.shape)

    def called(self, attribute: str) -> str:
        """The computation that an attribute (`calls`, `body`, ...) names; "" without it."""
        found = re.search(attribute + r"=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if found:
            return _NAME.findall(found[1]) or re.findall(r"[\w.\-]+", found[1])
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.attributes)


def pieces(shape: str) -> list[Piece]:
    """The arrays of a shape's text, `(f32[2,3]{1,0:T(8,128)}, s32[])` for instance."""
    found = []
    for kind, dims, layout in _ARRAY.findall(shape):
        bits = _BITS.get(kind, 8)  # one of the many 8-bit floats
        for dim in re.findall(r"\d+", dims):
            bits *= int(dim)
        # S(n) is the memory space: 0, which is not written, is the main memory
        found.append(Piece(-(-bits // 8), "S(" not in layout))
    return found


class Computation:
    """A list of instructions; the last or the ROOT one is its result."""

    def __init__(self, name: str):
        self.name = name
        self.instructions: dict[str, Instruction] = {}
        self.root = ""

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def result(self) -> Instruction:
        """The instruction whose value is the computation's."""
        return self.instructions[self.root]

    def parameter(self, number: int) -> Instruction | None:
        """An argument."""
        for instruction in self:
            if instruction.opcode == "parameter" and instruction.inside.strip() == str(number):
                return instruction
        return None

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that have one as an operand."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users


class Program:
    """All computations of a compiled program."""

    def __init__(self, text: str):
        """Reads `jax.stages.Compiled.as_text()`."""
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current = Computation("")
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = Computation(header[2])
                self.entry = header[2] if header[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                instruction = _instruction(found[2], found[3])
                current.instructions[instruction.name] = instruction
                if found[1] or not current.root:
                    current.root = instruction.name

    def trips(self, loop: Instruction, within: Computation) -> int | None:
        """How often a `while`'s body runs; None if its text does not say.

        Loops that JAX and XLA make count from a constant to a constant: the condition compares a
        counter of the loop's state, to which the body adds a constant.
        """
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        test = self.computations.get(loop.called("condition"))
        body = self.computations.get(loop.called("body"))
        if test is None or body is None:
            return None
        compare = test.result()
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        counter, end = (test.instructions.get(name) for name in compare.operands)
        if counter is None or end is None or counter.opcode != "get-tuple-element":
            return None
        index = _index(counter)
        last = _constant(end)
        if end.opcode == "get-tuple-element":  # the state carries the number of turns
            last = self._initial(loop, within, _index(end))
        first = self._initial(loop, within, index)
        step = _step(body, index)
        if last is None or not step:
            return None
        return max(-(-(last - (first or 0)) // step), 0)

    def _initial(self, loop: Instruction, within: Computation, index: int) -> int | None:
        """A constant of the state that a loop starts with."""
        state = within.instructions.get(loop.operands[0]) if loop.operands else None
        if state is None or state.opcode != "tuple" or index >= len(state.operands):
            return None
        return _constant(within.instructions.get(state.operands[index]))


def _instruction(name: str, text: str) -> Instruction:
    opcode = _OPCODE.search(text)
    if opcode is None:
        return Instruction(name, text, "", (), "", "")
    start = depth = opcode.end()
    end, depth = start, 1
    while end < len(text) and depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    inside = text[start : end - 1]
    shape = text[: opcode.start()]
    return Instruction(name, shape, opcode[1], tuple(_NAME.findall(inside)), inside, text[end:])


def _index(element: Instruction) -> int:
    found = re.search(r"index=(\d+)", element.attributes)
    return int(found[1]) if found else 0


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    found = re.fullmatch(r"-?\d+", instruction.inside.strip())
    return int(found[0]) if found else None


def _step(body: Computation, index: int) -> int | None:
    """What the body adds to an element of its state."""
    result = body.result()
    if result.opcode != "tuple" or index >= len(result.operands):
        return None
    update = body.instructions.get(result.operands[index])
    while update is not None and update.opcode in ("copy", "bitcast"):
        update = body.instructions.get(update.operands[0])
    if update is None or update.opcode != "add":
        return None
    steps = [_constant(body.instructions.get(name)) for name in update.operands]
    return next((step for step in steps if step), None)
