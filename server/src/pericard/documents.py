"""YAML that people write, read once and strictly into typed values.

Rules of this room: an unknown key, a wrong type or a key that stands twice refuses the whole document and is named; a
document has a largest size; what it means is for its reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from pericard import durable
from pericard.errors import ConfigError

_LARGEST = 1 << 20
_T = TypeVar("_T")


class _Strict(yaml.SafeLoader):
    """Plain values, and no key twice: one of the two would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        found: dict[object, object] = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            line = node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(problem=f"a key stands twice in the block of line {line}")
        return found


def read(path: Path) -> bytes:
    """The bytes of a document.

    Raises:
        ConfigError: it cannot be read, or is larger than 1 MiB.
    """
    try:
        return durable.read(path, limit=_LARGEST)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error


def parse(data: bytes, kind: type[_T], *, subject: str, hint: str | None = None) -> _T:
    """What a document says.

    Args:
        data: the document, in UTF-8.
        kind: what it must be, as msgspec understands it.
        subject: how errors call it.
        hint: where its form is described.

    Raises:
        ConfigError: it is no YAML, or does not have this form.
    """
    try:
        value = _Strict(data.decode("utf-8")).get_single_data()
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"{subject}: {error.problem or 'is not valid yaml'}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{subject}: is not valid yaml") from error
    try:
        return msgspec.convert(value, type=kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{subject}: {str(error).lower()}", hint=hint) from error


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
