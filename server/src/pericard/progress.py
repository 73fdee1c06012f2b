"""One progress bar for long work: on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with what is done and what there is in all, in bytes."""
    with click.progressbar(
        length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty(), show_percent=True, update_min_steps=1
    ) as shown:

        def tell(done: int, size: int) -> None:
            shown.length = size
            shown.update(done - shown.pos)

        yield tell
