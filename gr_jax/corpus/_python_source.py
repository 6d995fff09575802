"""Where a public name is defined, found by following imports through source files.

A name's public place is often not where it is written: numpy.sort is in
numpy/_core/fromnumeric.py and arrives in numpy/__init__.py through three imports. `Library.find`
follows such imports, aliases and star imports; nothing that it reads is imported.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

from gr_jax.corpus._python_module import Alias, Binding, Class, Definition, Function, Import, Module


class Library:
    """Modules below some roots, read when they are first asked for.

    Args:
        roots: top-level name -> folder of the package; "" -> the folder of top-level modules.
        native: whether modules without source may be imported. Only for the standard library, whose
            C modules are part of the interpreter.
    """

    def __init__(self, roots: dict[str, Path], *, native: bool):
        self._roots = roots
        self._native = native
        self._modules: dict[str, Module | None] = {}
        self._natives: dict[int, tuple[object, Definition | None]] = {}

    def module(self, name: str) -> Module | None:
        """Returns the module, None if it has no source here."""
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = Module(name, path) if path else None
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        top, _, rest = name.partition(".")
        root = self._roots.get(top)
        if root is None and "" in self._roots:
            root = self._roots[""] / top
        if root is None or not top or not all(name.split(".")):
            return None
        stem = root.joinpath(*rest.split(".")) if rest else root
        for path in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if path.is_file():
                return path
        return None

    def native(self, name: str) -> types.ModuleType | None:
        """Imports one of the interpreter's own C modules; None for anything else."""
        if not self._native or name.partition(".")[0] not in sys.stdlib_module_names:
            return None
        if name not in sys.builtin_module_names:
            try:
                spec = importlib.util.find_spec(name)
            except ImportError:
                return None
            if spec is None or not spec.origin or spec.origin.endswith((".py", ".pyc")):
                return None
        try:
            return importlib.import_module(name)
        except ImportError:
            return None

    def names(self, name: str) -> list[str]:
        """Returns a module's public names, in the order of `__all__` or else of the source."""
        return list(dict.fromkeys(n for n in self._names(name, ()) if not n.startswith("_")))

    def _names(self, name: str, above: tuple[str, ...]) -> Iterator[str]:
        module = self.module(name)
        if name in above:
            return
        if module is None:
            # C modules say nothing about order; their own may change between builds.
            yield from sorted(vars(self.native(name) or types.ModuleType("none")))
            return
        listed = [self._listed(module, value) for value in module.listed]
        if listed and all(part is not None for part in listed):
            for part in listed:
                yield from part or ()
            return
        for bound, bindings in module.bindings.items():
            # What a plain module imports, it uses; what a package's __init__ imports, it offers.
            hub = module.is_package or bool(module.stars)
            # `from _pickle import dump`: a private C half is the module's own, too.
            own = any(
                not isinstance(b, Import) or b.offered or b.module.startswith("_") for b in bindings
            )
            if (hub or own) and bound not in module.deleted:
                yield bound
        for star in module.stars:
            yield from self._names(star, (*above, name))

    def _listed(self, module: Module, value: ast.expr) -> list[str] | None:
        """Evaluates what `__all__` is set to; None if that takes more than reading."""
        match value:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                names: list[str] = []
                for element in elements:
                    if isinstance(element, ast.Constant) and isinstance(element.value, str):
                        names.append(element.value)
                    else:
                        return None
                return names
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                first, second = self._listed(module, left), self._listed(module, right)
                return None if first is None or second is None else first + second
            case ast.Call(func=ast.Attribute(value=inner, attr="copy"), args=[]):
                return self._listed(module, inner)
            case ast.Attribute(value=ast.Name(id=name), attr="__all__"):
                other = self._submodule(module, name)
                if other is None or not other.listed:
                    return None
                return self.names(other.name)
        return None

    def _submodule(self, module: Module, name: str) -> Module | None:
        for binding in module.bindings.get(name, ()):
            if isinstance(binding, Import):
                full = f"{binding.module}.{binding.name}" if binding.name else binding.module
                if found := self.module(full):
                    return found
        return self.module(f"{module.name}.{name}") if module.is_package else None

    def find(self, module_name: str, name: str) -> Definition | None:
        """Returns what `module_name.name` is, wherever it is defined; None if it cannot be told."""
        return self._find(module_name, name, ())

    def _find(self, where: str, name: str, above: tuple[tuple[str, str], ...]) -> Definition | None:
        if (where, name) in above or len(above) > 40:
            return None
        above = (*above, (where, name))
        module = self.module(where)
        if module is None:
            value = getattr(self.native(where), name, None)
            # One definition for all names of an object, which is kept so that its id stays its own.
            _, found = self._natives.setdefault(id(value), (value, native_definition(value)))
            return found if found and found.doc else None
        silent: Definition | None = None
        for binding in _best_first(module.bindings.get(name, ())):
            found = None
            match binding:
                case Function() | Class():
                    if binding.doc or not self._native:
                        return binding
                    silent = binding  # a wrapper: what it wraps may say more
                case Import(module=source, name=attr):
                    found = self._find(source, attr, above) if attr else None
                case Alias(target=target, called=called):
                    found = self._follow(module, target, above)
                    if isinstance(found, Function) and called:
                        found = None  # the result of a function, of which nothing is known
                    elif isinstance(found, Class) and called:
                        found = dataclasses.replace(found, name=name, is_instance=True)
            if found:
                return found
        # Source first: a C accelerator says less about itself than what it replaces.
        for star in sorted(module.stars, key=lambda star: self.module(star) is None):
            if found := self._find(star, name, above):
                return found
        if silent:
            return silent
        if module.is_package and self._native and not module.bindings.get(name):
            return self._find_below(module, name)
        return None

    def _find_below(self, package: Module, name: str) -> Definition | None:
        """Looks in a package's files, for names that it offers by a `__getattr__` of its own."""
        if "__getattr__" not in package.bindings:
            return None
        for path in sorted(package.path.parent.glob("[!_]*.py")):
            module = self.module(f"{package.name}.{path.stem}")
            for binding in module.bindings.get(name, ()) if module else ():
                if isinstance(binding, Function | Class):
                    return binding
        return None

    def _follow(
        self, module: Module, target: str, above: tuple[tuple[str, str], ...]
    ) -> Definition | None:
        """Resolves a dotted expression in a module: through modules, then into a class."""
        head, *rest = target.split(".")
        if not rest:
            return self._find(module.name, head, above)
        for binding in module.bindings.get(head, ()):
            if isinstance(binding, Import):
                full = f"{binding.module}.{binding.name}" if binding.name else binding.module
                if len(rest) == 1 and (self.module(full) or self.native(full)):
                    return self._find(full, rest[0], above)
        owner = self._find(module.name, head, above)
        if isinstance(owner, Class) and len(rest) == 1:
            return self.members(owner, every=True).get(rest[0])
        return None

    def members(
        self, owner: Class, public: Iterable[Definition] = (), *, every: bool = False
    ) -> dict[str, Function]:
        """Returns a class's public methods, those of private bases included.

        Args:
            owner: the class.
            public: definitions that have a public name; methods inherited from those are documented
                there.
            every: include what is inherited from any base.
        """
        hidden = set(map(id, public))
        found = dict(owner.members)
        todo, seen = [owner], [owner]
        while todo:
            current = todo.pop(0)
            for base in current.bases:
                if current.home is None:
                    break
                parent = self._follow(current.home, base, ())
                if not isinstance(parent, Class) or parent in seen:
                    continue
                seen.append(parent)
                if every or id(parent) not in hidden:
                    todo.append(parent)
                    for name, member in parent.members.items():
                        found.setdefault(name, member)
        return {name: member for name, member in found.items() if not name.startswith("_")}


def _best_first(bindings: Iterable[Binding]) -> list[Binding]:
    """Definitions with docstrings before anything else: a C accelerator's import comes last."""
    return sorted(bindings, key=lambda b: not (isinstance(b, Function | Class) and b.doc))


def native_definition(value: object) -> Definition | None:
    """Returns what a built-in object says about itself; None for anything else.

    Notebooks and test runners put Python functions of their own into `builtins` and `sys`; with
    those, the same installation would have two corpora.
    """
    own_name = getattr(value, "__name__", "")
    if isinstance(value, type):
        if value.__module__.partition(".")[0] not in sys.stdlib_module_names:
            return None
        members = {
            name: Function(name, _own_doc(member))
            for name, member in sorted(vars(value).items())
            if not name.startswith("_")
            and (
                callable(member)
                or inspect.isdatadescriptor(member)
                or isinstance(member, classmethod | staticmethod)
            )
        }
        return Class(own_name, _own_doc(value), members)
    native = inspect.isroutine(value) and not isinstance(
        value, types.FunctionType | types.MethodType
    )
    return Function(own_name, _own_doc(value)) if native else None


def _own_doc(value: object) -> str:
    doc = getattr(value, "__doc__", None)
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""
