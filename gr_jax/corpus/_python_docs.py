"""The embedded collection: the documentation of Python and of the numerical packages beside it.

Every installation has it, nobody has to download it, and its queries are in `_python_questions`.
The text is read from the installed source at run time (`_python_source`), so numpy, scipy and jax
are not imported, and a newer version brings its newer documentation.
"""

import ast
import dataclasses
import importlib.util
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from gr_jax.corpus._docstrings import prose
from gr_jax.corpus._python_module import Class, Definition, Function, dotted
from gr_jax.corpus._python_questions import QUESTIONS
from gr_jax.corpus._python_source import Library, native_definition
from gr_jax.corpus._types import Collection, Corpus, Document, Query, QuerySet
from gr_jax.errors import UserError

MIN_WORDS = 3  # "Greatest common divisor." is one; "See above." is none

# What programs use, in the order of the library reference; where two names have the same docstring
# the earlier keeps it. Left out: the language's own machinery (ast, dis, importlib's internals),
# platform-specific and superseded modules, and the graphical ones.
_STDLIB = """
    builtins string re difflib textwrap unicodedata struct codecs
    datetime zoneinfo calendar collections collections.abc heapq bisect array weakref types copy
    pprint reprlib enum graphlib numbers math cmath decimal fractions random statistics itertools
    functools operator os.path pathlib fileinput stat filecmp tempfile glob fnmatch linecache shutil
    pickle shelve dbm sqlite3 zlib gzip bz2 lzma zipfile tarfile csv configparser tomllib plistlib
    hashlib hmac secrets os io time argparse getopt logging logging.handlers getpass
    platform errno threading multiprocessing multiprocessing.pool multiprocessing.shared_memory
    concurrent.futures subprocess sched queue contextvars asyncio socket ssl select selectors signal
    mmap email.message email.utils json mimetypes base64 binascii html html.parser
    xml.etree.ElementTree webbrowser urllib.request urllib.parse urllib.error
    urllib.robotparser http http.client http.server http.cookies ftplib smtplib uuid socketserver
    ipaddress wave colorsys gettext locale cmd shlex typing doctest unittest unittest.mock
     pdb cProfile pstats timeit trace tracemalloc sys warnings dataclasses
    contextlib abc atexit traceback gc inspect pkgutil importlib importlib.resources
    importlib.metadata ast keyword 
"""
_NUMPY = [
    "numpy",
    "numpy.linalg",
    "numpy.fft",
    "numpy.polynomial.polynomial",
    "numpy.polynomial.chebyshev",
    "numpy.polynomial",
    "numpy.strings",
    "numpy.lib.stride_tricks",
]
_JAX = [
    "jax.numpy",
    "jax.numpy.linalg",
    "jax.numpy.fft",
]
_SCIPY = [
    "scipy.cluster.hierarchy",
    "scipy.cluster.vq",
    "scipy.differentiate",
    "scipy.fft",
    "scipy.integrate",
    "scipy.interpolate",
    "scipy.io",
    "scipy.linalg",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.signal",
    "scipy.signal.windows",
    "scipy.sparse",
    "scipy.sparse.linalg",
    "scipy.sparse.csgraph",
    "scipy.spatial",
    "scipy.spatial.distance",
    "scipy.spatial.transform",
    "scipy.special",
    "scipy.stats",
    "scipy.stats.qmc",
]
# Outside the standard library, classes whose methods people look for; other classes are one
# document each.
_WITH_METHODS = {
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.polynomial.Polynomial",
    "scipy.interpolate.PPoly",
    "scipy.sparse.csr_array",
    "scipy.spatial.KDTree",
    "scipy.spatial.transform.Rotation",
    "scipy.stats.gaussian_kde",
    "scipy.stats.rv_continuous",
}
# What notebooks and test runners replace, so that it is not the same in every process; and what
# those modules offer to their own extensions rather than to programs: event loop internals,
# syntax tree nodes, the second spelling of decimal's methods, commands of the debugger, the classes
# behind scipy's distributions.
_SKIPPED = re.compile(
    r"input|sys\.\w+hook|"
    r"asyncio\.(Base|Abstract|Selector|Proactor|Iocp|Default|\w*ChildWatcher|\w*Transport|"
    r"\w*Protocol|Stream\w*Protocol).*|ast\.[A-Z].*|decimal\.\w*Context\..*|pdb\.Pdb\..*|"
    r"scipy\.stats\.\w+_gen|codecs\.\w+\..*|numbers\.\w+\..*|tarfile\.TarInfo\..*|"
    r"calendar\.\w+Calendar\..*|ssl\.\w+\..*|ipaddress\.IPv6\w*\..*|memoryview\..*|"
    r"io\.(IncrementalNewlineDecoder|Buffered\w+)\..*|configparser\.(Raw\w*|Section\w*)\..*|"
    r"doctest\.\w+\..*|os\.\w+_result\..*|time\.struct_time\..*|logging\.handlers\.\w+\..*|"
    r"operator\.i(add|and|concat|floordiv|lshift|matmul|mod|mul|or|pow|rshift|sub|truediv|xor)|"
    r"email\.message\.MIMEPart\..*|socket\.SocketType|enum\.global_.*"
)
# Twins of other built-in types, whose methods have the same docstrings: read last.
_TWINS = ("bytes", "bytearray", "frozenset")
# Where a module's public name is not its file's.
_HOMES = {"os.path": "posixpath"}
# multiprocessing's functions are bound methods of a default context that exists at run time only.
_BOUND = {"multiprocessing": ("multiprocessing.context", "BaseContext")}
# C classes that their module gets hold of only by calling something.
_NATIVE_TYPES = {"re": {"Pattern": type(re.compile("")), "Match": type(re.match("", ""))}}


def python_docs() -> Collection:
    """Returns the documentation of Python, numpy, jax.numpy and scipy, with our own questions.

    Packages that are not installed are left out. The same installation always gives the same
    documents in the same order.

    Raises:
        UserError: if the installation has no source files to read.
    """
    documents = tuple(_documents())
    if len(documents) < 1000:
        raise UserError(
            f"{sysconfig.get_path('stdlib')}: only {len(documents)} docstrings found; this Python "
            "has no source files, so give a corpus of your own"
        )
    corpus = Corpus("python-docs", documents)
    return Collection(corpus, None, {"questions": _questions(corpus)})


def _questions(corpus: Corpus) -> QuerySet:
    """Our questions, less what this installation does not have."""
    queries: list[Query] = []
    qrels: dict[str, dict[str, int]] = {}
    for number, (text, names) in enumerate(QUESTIONS, start=1):
        # Numbered before anything is dropped: an id means the same question everywhere.
        query_id = f"q{number:03d}"
        grades = {name: 1 for name in names if name in corpus.doc_ids}
        if grades:
            queries.append(Query(query_id, text))
            qrels[query_id] = grades
    return QuerySet("questions", tuple(queries), qrels)


def _documents() -> Iterator[Document]:
    """Yields the documents of all packages, each docstring once per package."""
    for package in _packages():
        seen: set[str] = set()
        for name, docstring in _entries(package):
            text = prose(docstring)
            words = len(text.split())
            # Short docstrings coincide ("Close the file."); long ones only if they are copies.
            key = text if words >= 12 else f"{text} {name.rpartition('.')[2]}"
            if words >= MIN_WORDS and seen.isdisjoint((key, name)):
                seen |= {key, name}
                yield Document(name, name, text)


@dataclasses.dataclass(frozen=True)
class _Package:
    """One source of documents.

    Attributes:
        library: where definitions are looked up.
        modules: the public modules, in the order of the corpus.
        added: docstrings of C objects that are written in a Python file: "array", "ndarray.sum".
        added_to: the module of those objects.
        all_methods: whether every class's methods are documents of their own.
    """

    library: Library
    modules: Sequence[str]
    added: dict[str, str]
    added_to: str
    all_methods: bool


def _packages() -> Iterator[_Package]:
    """Yields the standard library, and the numerical packages that are installed."""
    stdlib = Library({"": Path(sysconfig.get_path("stdlib"))}, native=True)
    yield _Package(stdlib, _STDLIB.split(), {}, "", all_methods=True)
    for top, modules, added_file, added_to in (
        ("numpy", _NUMPY, "_core/_add_newdocs.py", "numpy"),
        ("jax", _JAX, "", ""),
        ("scipy", _SCIPY, "special/_add_newdocs.py", "scipy.special"),
    ):
        spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
        if spec is not None and spec.origin:
            root = Path(spec.origin).parent
            added = _added_docs(root / added_file) if added_file else {}
            library = Library({top: root}, native=False)
            yield _Package(library, modules, added, added_to, all_methods=False)


def _entries(package: _Package) -> Iterator[tuple[str, str]]:
    """Yields (public name, docstring): each module, what it offers, and methods."""
    offered = {module: _offered(package, module) for module in package.modules}
    public = [definition for names in offered.values() for definition in names.values()]
    taken: set[int] = set()
    for module in package.modules:
        added = package.added if module == package.added_to else {}
        prefix = _prefix(module)
        if prefix:
            yield module, _module_doc(package.library, _HOMES.get(module, module))
        kept: dict[str, Definition] = {}
        # Of an object with two names (numpy.concat), the one that its definition has comes first.
        for name, definition in sorted(offered[module].items(), key=lambda x: x[0] != x[1].name):
            # Modules also pass on what others offer.
            if id(definition) not in taken:
                taken.add(id(definition))
                kept[name] = definition
        names = sorted(kept, key=[n for n in offered[module] if n in kept].index)
        for name in names:
            yield prefix + name, kept[name].doc or added.get(name, "")
        # After all names: random.shuffle is random.Random.shuffle, and better known.
        twins = {name: n for n, name in enumerate(_TWINS if prefix == "" else (), start=1)}
        for name in sorted(names, key=lambda name: twins.get(name, 0)):
            for method, doc in _methods(package, prefix + name, kept[name], public, added):
                if not _SKIPPED.fullmatch(f"{prefix}{name}.{method}"):
                    yield f"{prefix}{name}.{method}", doc


def _prefix(module: str) -> str:
    """What comes before a module's names: nobody writes builtins.len."""
    return "" if module == "builtins" else f"{module}."


def _methods(
    package: _Package,
    qualified: str,
    owner: Definition,
    public: list[Definition],
    added: dict[str, str],
) -> Iterator[tuple[str, str]]:
    """Yields (name, docstring) for the methods that are documents of their own."""
    if not package.all_methods and qualified not in _WITH_METHODS:
        return
    if isinstance(owner, Class):
        members = package.library.members(owner, public)
        yield from ((name, member.doc) for name, member in members.items())
    name = qualified.rpartition(".")[2]
    for key, doc in added.items():
        if key.startswith(f"{name}.") and not key.startswith(f"{name}._"):
            yield key.partition(".")[2], doc


def _module_doc(library: Library, name: str) -> str:
    if module := library.module(name):
        # decimal.py, for one, is an import of another module with the documentation.
        return module.doc or next((_module_doc(library, star) for star in module.stars), "")
    native = library.native(name)
    return (native.__doc__ if native else None) or ""


def _offered(package: _Package, module: str) -> dict[str, Definition]:
    """Returns what a public module offers, by name, in the order of the module."""
    library, home = package.library, _HOMES.get(module, module)
    added = package.added if module == package.added_to else {}
    found: dict[str, Definition] = {}
    # scipy.special's names are compiled in, too; numpy's are all imported by name.
    extra = [key for key in added if "." not in key] if module == "scipy.special" else []
    for name in [*library.names(home), *extra]:
        definition = library.find(home, name)
        if definition is None and name in added and not name.startswith("_"):
            definition = Function(name, added[name])
        if isinstance(definition, Class) and definition.is_instance and package.all_methods:
            continue  # decimal.BasicContext: a value, not something to look up
        if definition is not None and not _SKIPPED.fullmatch(_prefix(module) + name):
            found[name] = definition
    if module in _BOUND:
        where, name = _BOUND[module]
        owner = library.find(where, name)
        found |= library.members(owner) if isinstance(owner, Class) else {}
    for name, value in _NATIVE_TYPES.get(module, {}).items():
        if definition := native_definition(value):
            found[name] = definition
    return found


def _added_docs(path: Path) -> dict[str, str]:
    """Reads docstrings that a package attaches to its C objects by calls of `add_newdoc`.

    Returns:
        "array" or "ndarray.sum" -> docstring. Calls with a computed text are passed over.
    """
    docs: dict[str, str] = {}
    if not path.is_file():
        return docs
    for node in ast.parse(path.read_bytes()).body:
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
            continue
        match dotted(node.value.func), node.value.args:
            case "add_newdoc", [*_, ast.Constant(value=str(owner)), ast.Tuple(elts=[name, text])]:
                prefix = f"{owner}."
            case "add_newdoc", [*_, name, text]:
                prefix = ""
            case "_array_method_doc", [name, _, text]:
                prefix = "ndarray."
            case _:
                continue
        while isinstance(text, ast.Call) and isinstance(text.func, ast.Attribute):
            text = text.func.value  # """...""".replace(...)
        match name, text:
            case ast.Constant(value=str(key)), ast.Constant(value=str(doc)):
                docs.setdefault(prefix + key, doc)
    return docs
