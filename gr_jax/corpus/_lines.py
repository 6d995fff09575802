"""Lines of text files, plain or gzip, with every way in which a file can be unreadable named."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gr_jax.errors import UserError


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) for each line that is not blank.

    Only a line feed ends a line: JSON strings may hold U+2028 and its like as they are.

    Raises:
        UserError: if the file is missing, unreadable, not UTF-8, or a gzip file that is cut short.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; "
                        "re-encode as UTF-8 (iconv -f latin1 -t utf-8, if it is Latin-1)"
                    ) from None
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}:{number + 1}: the gzip file is damaged or cut short ({error}); "
            "download or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def json_objects(path: Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) for each line of a JSON-lines file that is not blank.

    Args:
        path: the file, .jsonl or .jsonl.gz.
        example: how a line should look, for the error messages.

    Raises:
        UserError: as `lines`, and if a line is not JSON or not an object.
    """
    for number, line in lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); "
                f"each line is one object like {example}"
            ) from None
        except (RecursionError, ValueError) as error:  # nested too deeply, or an endless number
            raise UserError(
                f"{path}:{number}: JSON that cannot be read ({error}); "
                f"each line is one object like {example}"
            ) from None
        if not isinstance(value, dict):
            raise UserError(
                f"{path}:{number}: a JSON {type(value).__name__}, not an object; "
                f"each line is one object like {example}"
            )
        yield number, value


def record_id(record: dict[str, Any], where: str, example: str) -> str:
    """Returns a record's `_id` as a string that a TREC run can hold.

    Raises:
        UserError: if it is missing, neither string nor integer, or has whitespace; `where` is the
            message's "file:line".
    """
    if "_id" not in record:
        raise UserError(f'{where}: no "_id"; each line is one object like {example}')
    value = record["_id"]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f'{where}: "_id" is a JSON {type(value).__name__}; write it as a string: "_id": "..."'
        )
    if value.split() != [value]:
        raise UserError(
            f'{where}: "_id" {value!r} is empty or has whitespace, which TREC files cannot hold; '
            "replace it, with _ for example"
        )
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f'{where}: "_id" {value!r} has half a surrogate pair, which is no character; '
                "replace it"
            ) from None
    return value


def text_field(record: dict[str, Any], field: str, where: str) -> str:
    """Returns a text field, "" if absent or null, with lone surrogates replaced by U+FFFD.

    A JSON escape can spell half a surrogate pair (truncated emoji in scraped text), which no
    tokenizer can encode; one such character is no reason to refuse a corpus.

    Raises:
        UserError: if the field is not a string.
    """
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f'{where}: "{field}" is a JSON {type(value).__name__}; write it as a string'
        )
    return whole_characters(value)


def whole_characters(text: str) -> str:
    """The text with lone surrogates, which no tokenizer can encode, replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
