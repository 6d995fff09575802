"""What a word is, in one place: samplers, vocabularies and queries must agree on it."""

import re

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The case-folded runs of letters and digits of `text`: punctuation only separates them."""
    return _WORD.findall(text.casefold())


def normalize(text: str) -> str:
    """`text` as its words with single spaces between them."""
    return " ".join(words(text))
