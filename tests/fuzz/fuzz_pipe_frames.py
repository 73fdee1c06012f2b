"""Coverage-guided fuzzing of the engine's end of the pipe: what an edge that was taken over may say.

``python tests/fuzz/fuzz_pipe_frames.py CORPUS [libFuzzer's options]``. An input is a stream, as an edge would send it.
It goes through the reader and the reception of an engine, into its queue; only that there is no model to compute.
Whatever is not a broken rule is a crash; so is a question that is lost, or left behind once its edge is gone.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, cast

import atheris

with atheris.instrument_imports(include=["pericard.pipe", "pericard.engine.reception", "pericard.engine.scheduler"]):
    from pericard.engine.rates import Rates
    from pericard.engine.reception import Reception
    from pericard.engine.refusals import Refusals
    from pericard.engine.repository import Repository, Served
    from pericard.engine.scheduler import Scheduler
    from pericard.errors import PipeError
    from pericard.metrics import Metrics
    from pericard.pipe import EdgeLink, FrameReader, create, frames
    from pericard.pipe.region import MIN_SIZE
    from pericard.sealed.grant import Grant
    from pericard.trust import Licence

LICENCE = Licence(Grant("", "", 0, 1 << 40, 0, b""))
SERVED = Served(1, "m", 1, cast("Any", None), "", "", (), (1, 4), {}, LICENCE)
REPOSITORY = Repository(runtime="00" * 32)
SCHEDULER = Scheduler(8, per_caller=4)
RECEPTION = Reception(
    REPOSITORY, SCHEDULER, Metrics(), Refusals(), rates=Rates(1e9, burst=8), admin=lambda *_: {}, statistics=list,
    evidence=lambda *_: b"",
)  # fmt: skip
OURS, THEIRS = socket.socketpair()
LINK = EdgeLink(THEIRS, create(MIN_SIZE))


def one(data: bytes) -> None:
    """One stream of an edge."""
    SERVED.waiting = 0
    reader = FrameReader(head=1 << 16, body=0)
    try:
        for frame in reader.feed(data):
            RECEPTION.receive(LINK, frame)
            _drain()
    except PipeError:
        pass
    queued, taken = len(SCHEDULER), SCHEDULER.take()
    assert taken is not None
    SCHEDULER.finish([*taken.jobs, *taken.late])
    dropped = SCHEDULER.drop(LINK)
    assert len(taken.jobs) + len(taken.late) + len(dropped) == queued
    assert (len(SCHEDULER), SERVED.waiting) == (0, 0)


def _drain() -> None:
    """Take what the engine answered, so that it never waits for this edge."""
    try:
        while OURS.recv(1 << 20, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """Libfuzzer's own change, with every frame's length of its head made right again half of the time."""
    changed = bytes(atheris.Mutate(data, most))
    if seed % 2 and len(changed) >= frames.HEADER.size:
        kind = 1 + changed[2] % 9
        length = len(changed) - frames.HEADER.size
        request = struct.unpack_from("<Q", changed, 4)[0] % 8
        return frames.HEADER.pack(frames.MAGIC, kind, 0, request, length, 0) + changed[frames.HEADER.size :]
    return changed


if __name__ == "__main__":
    REPOSITORY.add(SERVED)
    atheris.Setup(sys.argv, one, custom_mutator=mutated)
    atheris.Fuzz()
