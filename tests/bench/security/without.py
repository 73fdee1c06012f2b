"""The daemon without authentication, audit and receipts, to see what they cost: ``without.py serve --config FILE``.

The product has no switch for this, and must have none. Here the daemon's own code runs, in its own processes, and in
each of them the parts are replaced by others that do nothing, once it is ready. A part that is no longer where it was
is an error. What is left of the parts, and so is not in their price, stands in docs/benchmarks/security.md.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any


def replace(owner: Any, name: str, part: Any) -> None:
    """Put another part in the place of one that must be there."""
    if not hasattr(owner, name):
        raise SystemExit(f"without: {owner} has no {name} any more")
    setattr(owner, name, part)


def strip_engine() -> None:
    """No record of an answer: no commitments, no canonical bytes, no tree, no head, no write, no sync."""
    from pericard.audit import Entry
    from pericard.engine.service import Service

    entry, key = Entry(0, bytes(32).hex(), b""), bytes(32)

    def recorded(_: Service, items: list[Any], __: int) -> list[tuple[Any, Entry, bytes]]:
        return [(item, entry, key) for item in items]

    replace(Service, "_recorded", recorded)


def strip_edge() -> None:
    """Nobody is asked who it is or what it may, and no answer carries a receipt."""
    import msgspec
    import numpy as np

    from pericard.auth import OPERATIONS, Grant, Principal
    from pericard.edge import answer, credentials, native, predict
    from pericard.edge.oip import response

    anybody = Principal("anybody", "none", (Grant(frozenset(OPERATIONS), ("*",)),))

    def prediction(found: Any, model: Any) -> bytes:
        outputs = {
            output.name: np.frombuffer(found.entry.data, output.dtype, output.count, output.start)
            .reshape(output.shape)
            .tolist()
            for output in model.outputs
        }
        return b'{"status":"ok","outputs":%b}' % msgspec.json.encode(outputs)

    replace(credentials, "authenticate", lambda *_: anybody)
    replace(answer, "require", lambda *_: None)
    replace(native, "require", lambda *_: None)
    replace(predict, "prediction", prediction)
    replace(response, "hexlify", lambda _: b"")


STRIP = {"engine": strip_engine, "edge": strip_edge}


def run_child(arguments: list[str]) -> int:
    """Run one child; its parts go once it is hardened and locked in, and before it hears of a request."""
    from pericard.daemon import child

    ready = child._settle_memory

    def strip_and_settle() -> None:
        STRIP[arguments[0]]()
        ready()

    if arguments[0] in STRIP:
        replace(child, "_settle_memory", strip_and_settle)
    return child.main(arguments)


def run_supervisor() -> None:
    """Run the daemon with children that this file runs."""
    from pericard.cli.main import run
    from pericard.daemon import supervisor

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            place = command.index("pericard.daemon.child")
            super().__init__([*command[: place - 1], __file__, *command[place + 1 :]], **options)

    replace(supervisor, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Popen}))
    run()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run_supervisor()
    else:
        sys.exit(run_child(sys.argv[1:]))
