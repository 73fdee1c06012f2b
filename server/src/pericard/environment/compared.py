"""Whether compiled files are what their sources compile to: a script of the standard library, in a process of its own.

Rules of this file: reading a compiled file may crash an interpreter if somebody made it to that end, which is why no
other process does. It reads ``[[compiled, source], …]`` from its input and answers with a list of true and false. Two
code objects agree if all agrees that can change what they do, positions for tracebacks included; the name of the file
alone may differ.
"""

from __future__ import annotations

import json
import marshal
import re
import struct
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType

_HEADER = struct.Struct("<4sIQ")
_KINDS = frozenset({0, 1, 3})  # by time, by checked hash, by unchecked hash
_LARGEST = 64 << 20
_FIELDS = tuple(
    name for name in dir(CodeType) if name.startswith("co_") and name not in {
        "co_consts", "co_filename", "co_lines", "co_positions", "co_branches", "co_lnotab", "_co_code_adaptive",
    }
)  # fmt: skip


def same(one: object, other: object) -> bool:
    """Whether two constants of code, or two code objects, are the same; types and the sign of a zero count."""
    if type(one) is not type(other):
        return False
    if isinstance(one, CodeType):
        fields = all(same(getattr(one, name), getattr(other, name)) for name in _FIELDS)
        return fields and same(one.co_consts, getattr(other, "co_consts", None))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return len(one) == len(other) and sorted(map(_shown, one)) == sorted(map(_shown, other))
    if isinstance(one, (float, complex)):
        return repr(one) == repr(other)
    return one == other


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"


def agrees(compiled: Path, source: Path) -> bool:
    """Whether a compiled file is what this interpreter makes of the source."""
    data, text = compiled.read_bytes(), source.read_bytes()
    if len(data) < _HEADER.size or max(len(data), len(text)) > _LARGEST:
        return False
    magic, kind, _ = _HEADER.unpack_from(data)
    if magic != MAGIC_NUMBER or kind not in _KINDS:
        return False
    match = re.search(r"\.opt-(\d)\.pyc$", compiled.name)
    wanted = compile(text, str(source), "exec", dont_inherit=True, optimize=int(match[1]) if match else 0)
    body = memoryview(data)[_HEADER.size :]
    found = marshal.loads(body)  # noqa: S302  (this process exists for it)
    return isinstance(found, CodeType) and same(found, wanted)


def main() -> None:
    """Answer for every pair; what cannot be read or compiled does not agree."""
    root, answers = Path(sys.argv[1]), []
    for compiled, source in json.load(sys.stdin):
        try:
            answers.append(agrees(root / compiled, root / source))
        except Exception:  # noqa: BLE001  (whatever a made-up file leads to)
            answers.append(False)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
