"""Where names come from, on packages made for the purpose."""

import sysconfig
from pathlib import Path

import pytest

from gr_jax.corpus._python_module import Class, Function
from gr_jax.corpus._python_source import Library


@pytest.fixture
def library(tmp_path):
    files = {
        "__init__.py": """
            '''Top.'''
            from . import sub
            from ._impl import *
            from ._impl import helper as public_helper
            from ._loop import endless
            if True:
                from ._other import chosen
            else:
                def chosen(): 'Not this.'
            thing = _Maker()
            from ._impl import _Maker
            alias = chosen
            gone = 1
            def removed(): 'Removed.'
            del removed
            """,
        "_impl.py": """
            __all__ = ['visible']
            __all__ += ['Base']
            def visible(): 'Visible.'
            def invisible(): 'Invisible.'
            def helper(): 'Helps.'
            class _Hidden:
                def inherited(self): 'From a private base.'
            class Base(_Hidden):
                'A base.'
                def method(self): 'A method.'
                def _private(self): 'No.'
            class _Maker:
                'Made things.'
            """,
        "_other.py": "def chosen(): 'Chosen.'",
        "_loop.py": "from ._loop2 import endless",
        "_loop2.py": "from ._loop import endless",
        "sub.py": """
            from ._impl import visible as visible
            from ._impl import helper
            class Derived(Base):
                'Derived.'
                def own(self): 'Own.'
            from ._impl import Base
            """,
    }
    root = tmp_path / "pkg"
    root.mkdir()
    for name, source in files.items():
        lines = source.splitlines()
        (root / name).write_text("\n".join(line.removeprefix(" " * 12) for line in lines))
    return Library({"pkg": root}, native=False)


def doc(definition):
    assert definition is not None
    return definition.doc


def test_definitions_are_found_through_imports(library):
    assert doc(library.find("pkg", "visible")) == "Visible."
    assert doc(library.find("pkg", "public_helper")) == "Helps."
    assert doc(library.find("pkg", "chosen")) in ("Chosen.", "Not this.")
    assert library.find("pkg", "alias") is library.find("pkg", "chosen")
    assert library.find("pkg", "endless") is None
    assert library.find("pkg", "absent") is None
    assert library.find("elsewhere", "x") is None


def test_instances_have_the_documentation_of_their_class(library):
    thing = library.find("pkg", "thing")
    assert isinstance(thing, Class)
    assert (thing.name, thing.doc, thing.is_instance) == ("thing", "Made things.", True)


def test_names(library):
    names = library.names("pkg")
    assert {"visible", "Base", "public_helper", "chosen", "thing"} <= set(names)
    assert not {"invisible", "helper", "removed", "_Maker"} & set(names)
    # A plain module offers what it defines, and what it imports under the same name on purpose.
    assert library.names("pkg.sub") == ["visible", "Derived"]
    assert library.names("pkg._impl") == ["visible", "Base"]


def test_methods_of_private_bases_belong_to_the_class(library):
    base, derived = library.find("pkg", "Base"), library.find("pkg.sub", "Derived")
    assert isinstance(base, Class)
    assert isinstance(derived, Class)
    assert sorted(library.members(base, [base])) == ["inherited", "method"]
    # What a public base has, its own private base included, is that one's.
    assert sorted(library.members(derived, [base, derived])) == ["own"]
    assert sorted(library.members(derived, every=True)) == ["inherited", "method", "own"]


def test_the_standard_library_says_what_its_c_halves_are():
    library = Library({"": Path(sysconfig.get_path("stdlib"))}, native=True)
    assert isinstance(library.find("math", "sqrt"), Function)
    assert isinstance(library.find("collections", "deque"), Class)
    assert isinstance(library.find("threading", "Lock"), Function | Class)
    assert library.native("json") is None  # has source: to be read
    assert library.native("numpy") is None  # not the interpreter's own


def test_no_import_of_what_is_not_the_interpreters_own():
    assert Library({}, native=False).native("math") is None
