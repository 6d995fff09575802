"""Docstrings as prose: without signatures, markup, code examples and reference lists."""

import inspect
import re

MAX_WORDS = 250

_SIGNATURE = re.compile(
    r"^[\w.]+\s*\((?:[^()]|\([^()]*\))*\)(?:\s*-{1,2}>\s*[^.\n]*?)?(?:\s*--?\s+|:?\s*$)"
)
_RULER = re.compile(r"^\s*([-=~^*+#`])\1{2,}\s*$|^\s*(?:[=+-]{2,}[\s+|]+)+[=+-]*$")
_DIRECTIVE = re.compile(r"^\s*\.\. ")
_ROLE = re.compile(r":(?:[a-z]+:)*[a-z]+:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_MARKUP = (
    (re.compile(r"``([^`]*)``"), r"\1"),
    (re.compile(r"`([^`<>]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"`([^`]*)`_?_?"), r"\1"),
    (re.compile(r"\*\*(\w[^*\n]*)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\w[^*\n]*?)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s*\[[\w-]+\]_"), ""),
    (re.compile(r"\|(\w[^|\n]*)\|_?"), r"\1"),
    (re.compile(r"\$\{\w+\}|%\(\w+\)s"), ""),
    (re.compile(r"\\([*_`|])"), r"\1"),
)
# Sections that say what the thing is for; all others are lists of other things or code.
_LISTS = {"parameters", "other parameters", "args", "arguments", "returns", "yields", "attributes"}
_PROSE = {"notes", "note", "description"}
_OTHER = {
    "see also",
    "examples",
    "example",
    "references",
    "raises",
    "warns",
    "warnings",
    "warning",
    "methods",
    "receives",
    "return",
    "keyword args",
    "todo",
    "usage",
    "history",
    "errors",
}
_GOOGLE_ITEM = re.compile(r"^\*{0,2}[\w, *]+(?:\s*\([^)]*\))?:(?:\s|$)")
_GOOGLE = re.compile(r"^([A-Z][a-z]+(?: [A-Za-z][a-z]+)?):$")


def prose(docstring: str, *, max_words: int = MAX_WORDS) -> str:
    """Returns a docstring's summary, explanation and parameters as one paragraph of plain text.

    Args:
        docstring: as written, in numpy's, Google's or no particular style.
        max_words: cut at the last whole word within this many, parameters before notes.
    """
    sections = _sections(
        _without_blocks(_without_signature(inspect.cleandoc(docstring).splitlines()))
    )
    words: list[str] = []
    for kinds in (("",), ("list", "args"), ("prose",)):
        for title, kind, lines in sections:
            if kind in kinds:
                listed = kind in ("list", "args")
                text = _list_text(lines, google=kind == "args") if listed else " ".join(lines)
                text = _plain(text)
                if text:
                    words += (f"{title}: {text}." if listed else text).split()
    return " ".join(words[:max_words])


def _without_signature(lines: list[str]) -> list[str]:
    """Drops the signatures that a docstring begins with, except what they say in words."""
    # C docstrings may spell the signature out, over many lines, up to a line of "--".
    start = next((n + 1 for n, line in enumerate(lines[:40]) if line.strip() == "--"), 0)
    while start < len(lines) and not lines[start].strip():
        start += 1
    said: list[str] = []
    while start < len(lines):
        signature, used = _joined(lines, start)
        if not (match := _SIGNATURE.match(signature)):
            break
        start += used
        # "defaultdict(...) --> dict with default factory" is the summary, "-> str" is not.
        result = re.sub(r"^.*?-+>", "", match.group(), count=1) if "->" in match.group() else ""
        rest = signature[match.end() :].strip() or result.strip(" :-")
        if len(rest.split()) >= 3:
            said.append(rest if rest.endswith(".") else f"{rest}.")
    # A docstring that is nothing but signatures keeps them: they are all it says.
    silent = not said and not any(line.strip() for line in lines[start:])
    return lines if silent else [*said, *lines[start:]]


def _without_blocks(lines: list[str]) -> list[str]:
    """Drops examples and directives with what is indented below them."""
    kept: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith(">>>"):
            while position < len(lines) and lines[position].strip():
                position += 1
        elif _DIRECTIVE.match(line):
            if re.match(r"^\s*\.\. (note|warning|tip|important)::", line):
                kept.append(line.partition("::")[2])
                continue
            while position < len(lines) and (
                not lines[position].strip()
                or len(lines[position]) - len(lines[position].lstrip()) > indent
            ):
                position += 1
        else:
            kept.append(line)
    return kept


def _joined(lines: list[str], start: int) -> tuple[str, int]:
    """Returns (the line with those after it that close its parentheses, how many lines)."""
    if not re.match(r"[\w.]+\(", lines[start]):
        return lines[start], 1
    for stop in range(start + 1, min(start + 15, len(lines) + 1)):
        text = " ".join(line.strip() for line in lines[start:stop])
        if text.count("(") <= text.count(")"):
            return text, stop - start
    return lines[start], 1


def _sections(lines: list[str]) -> list[tuple[str, str, list[str]]]:
    """Splits into (title, kind, lines).

    The kind is "" for the beginning, "list" for numpy's lists, "args" for Google's, "prose", or
    "drop" for what is left out.
    """
    sections: list[tuple[str, str, list[str]]] = [("", "", [])]
    for position, line in enumerate(lines):
        title = line.strip()
        ruled = position + 1 < len(lines) and _RULER.match(lines[position + 1])
        google = _GOOGLE.match(title) if line == line.lstrip() else None
        name = (google.group(1) if google else title).lower()
        if (ruled or google) and name in _LISTS | _PROSE | _OTHER:
            kind = "prose" if name in _PROSE else "drop"
            if name in _LISTS:
                kind = "list" if ruled else "args"
            sections.append((name.capitalize(), kind, []))
        elif not _RULER.match(line):
            sections[-1][2].append(line)
    return sections


def _list_text(lines: list[str], *, google: bool) -> str:
    """Returns "name: first sentence; name: first sentence" for a list of parameters."""
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    outer = min(indents, default=0)
    items: list[list[str]] = []
    for line in lines:
        if not line.strip():
            continue
        if len(line) - len(line.lstrip()) == outer:
            # numpy writes "name : type" and describes below; Google writes "name: description".
            name, colon, _ = line.strip().partition(" : ")
            if google and items and not _GOOGLE_ITEM.match(line.strip()):
                items[-1].append(line.strip())
            else:
                items.append([name] if colon else [line.strip()])
        elif items:
            items[-1].append(line.strip())
    return "; ".join(_first_sentence(item, google=google) for item in items)


def _first_sentence(item: list[str], *, google: bool) -> str:
    head, *rest = item
    if rest and ":" not in head and not google:
        head += ":"
    text = " ".join([head, *rest])
    match = re.search(r"(?<!e\.g)(?<!i\.e)\.\s", text)
    return (text[: match.start()] if match else text).rstrip(".")


def _plain(text: str) -> str:
    text = _ROLE.sub(r"\1", text)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.replace("::", ":").split())
