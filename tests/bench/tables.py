"""Tables as plain text: the same on a terminal and in a page."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, prose: bool = False) -> str:
    """Columns padded to their widest cell: the first to the left, the others right; ``prose``: the last left."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = {0, len(head) - 1} if prose else {0}

    def padded(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        padded = [cell.ljust(width) if n in left else cell.rjust(width) for n, (cell, width) in enumerate(cells)]
        return "  ".join(padded).rstrip()

    return "\n".join([padded(head), "  ".join("-" * width for width in widths), *map(padded, rows)])
