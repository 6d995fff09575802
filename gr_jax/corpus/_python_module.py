"""What one Python file defines, read from its syntax tree: nothing is imported, nothing runs."""

import ast
import dataclasses
import inspect
from pathlib import Path


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A function, method or property with its docstring."""

    name: str
    doc: str


@dataclasses.dataclass(frozen=True, eq=False)
class Class:
    """A class: its docstring, its methods, and its bases as they are written.

    An object that a module makes of a class and offers (`norm = norm_gen()`) is one too.
    """

    name: str
    doc: str
    members: dict[str, Function]
    bases: tuple[str, ...] = ()
    home: "Module | None" = None
    is_instance: bool = False


@dataclasses.dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` where the name is empty.

    `offered`: written `import name as name`, which says that the name is for others (PEP 484).
    """

    module: str
    name: str
    offered: bool = False


@dataclasses.dataclass(frozen=True)
class Alias:
    """`x = a.b`, or `x = a.b(...)`: an instance, if a.b is a class."""

    target: str
    called: bool


type Definition = Function | Class
type Binding = Definition | Import | Alias


class Module:
    """The top level of one source file."""

    def __init__(self, name: str, path: Path):
        self.name = name
        self.path = path
        self.is_package = path.name == "__init__.py"
        tree = ast.parse(path.read_bytes())
        self.doc = ast.get_docstring(tree) or ""
        self.bindings: dict[str, list[Binding]] = {}
        self.stars: list[str] = []
        self.deleted: set[str] = set()  # not offered, though other names may be made of them
        self.listed: list[ast.expr] = []  # what __all__ is set to and extended by
        self._read(tree.body)

    def _read(self, body: list[ast.stmt]) -> None:
        """Records bindings; both branches of an `if` count: which one runs is not our business."""
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self._bind(node.name, Function(node.name, ast.get_docstring(node) or ""))
                case ast.ClassDef():
                    self._bind(node.name, self._class(node))
                case ast.Import():
                    for alias in node.names:
                        target = alias.name if alias.asname else alias.name.partition(".")[0]
                        self._bind(alias.asname or target, Import(target, ""))
                case ast.ImportFrom():
                    self._import_from(node)
                case (
                    ast.Assign(targets=[ast.Name(id="__all__")])
                    | ast.AugAssign(target=ast.Name(id="__all__"))
                ):
                    self.listed.append(node.value)
                case ast.Assign(
                    targets=[ast.Name(id="__doc__")], value=ast.Constant(value=str(doc))
                ):
                    self.doc = self.doc or inspect.cleandoc(doc)
                case ast.Expr(value=ast.Call(func=function, args=[value])) if (
                    dotted(function) == "__all__.append"
                ):
                    self.listed.append(ast.List([value]))
                case ast.Expr(value=ast.Call(func=function, args=[value])) if (
                    dotted(function) == "__all__.extend"
                ):
                    self.listed.append(value)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    called = isinstance(value, ast.Call)
                    target = dotted(value.func if isinstance(value, ast.Call) else value)
                    if target:
                        self._bind(name, Alias(target, called))
                case ast.If() | ast.Try() | ast.With():
                    self._read(node.body)
                    if not isinstance(node, ast.With):
                        self._read(node.orelse)
                    if isinstance(node, ast.Try):
                        for handler in node.handlers:
                            self._read(handler.body)
                case ast.Delete():
                    for target in node.targets:
                        if isinstance(target, ast.Name):
                            self.deleted.add(target.id)

    def _bind(self, name: str, binding: Binding) -> None:
        self.bindings.setdefault(name, []).append(binding)

    def _class(self, node: ast.ClassDef) -> Class:
        members: dict[str, Function] = {}
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                # The first of a property's getter and setter has the docstring; of overloads, the
                # last.
                doc = ast.get_docstring(child) or ""
                if doc and not (child.name in members and members[child.name].doc):
                    members[child.name] = Function(child.name, doc)
        bases = tuple(filter(None, map(dotted, node.bases)))
        doc = ast.get_docstring(node) or ""
        if not doc and "__init__" in members:
            doc = members["__init__"].doc
        return Class(node.name, doc, members, bases, self)

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:
            parts = self.name.split(".")
            parts = parts[: len(parts) - node.level + self.is_package]
            module = ".".join([*parts, module] if module else parts)
        for alias in node.names:
            if alias.name == "*":
                self.stars.append(module)
            else:
                offered = alias.asname == alias.name
                self._bind(alias.asname or alias.name, Import(module, alias.name, offered))


def dotted(node: ast.expr) -> str:
    """Returns "a.b.c" for such an expression, "" for any other; `A[T]` counts as `A`."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if prefix := dotted(value):
            return f"{prefix}.{attr}"
        case ast.Subscript(value=value):
            return dotted(value)
    return ""
