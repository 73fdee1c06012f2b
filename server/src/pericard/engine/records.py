"""What is written of a row, and what goes back to its edge.

A record names the caller, the model, and how the answer was computed, so that it can be computed again; of the input
and the answer it holds commitments only, which the opening key opens that the caller alone gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from pericard.audit import Entry, commit
from pericard.engine.batch import Item
from pericard.errors import NotInterpretable
from pericard.pipe import Entry as Answered
from pericard.pipe import FrameType, Kind, error_frame
from pericard.pipe.frames import pack, pack_entry

_MOST_IN_FRAME = 4 << 20


def prediction(item: Item, key: bytes, *, runtime: str, device: str, threads: int) -> dict[str, Any]:
    """The record of one row.

    Args:
        item: with its answer or its error.
        key: the record's opening key.
        runtime: digest of the runtime.
        device: where it was computed.
        threads: per operator.
    """
    job, error = item.job, item.error
    caller, question = job.caller, job.question
    record: dict[str, Any] = {
        "event": "predict",
        "outcome": "ok" if error is None else error.code,
        "runtime": runtime,
        "principal": caller.principal,
        "credential": caller.credential,
        "address": caller.address,
        "request": question.request_id.decode("ascii", "replace"),
        "model": job.served.identity,
        "device": device,
        "licence": item.licence,
    }
    if question.trace:
        record["trace"] = question.trace.decode("ascii", "replace")
    if item.bucket:
        record["bucket"] = item.bucket
        record["place"] = item.place
        record["threads"] = threads
        record["path"] = item.path
        record["queue_us"] = int(item.queued * 1e6)
        record["infer_us"] = int(item.computed * 1e6)
    if item.inputs:
        record["input"] = commit(key, "input", *(array.data for array in item.inputs))
    if item.answer is not None:
        record["answer"] = commit(key, "answer", item.answer)
    return record


def shared(item: Item, *, runtime: str, log: str) -> bytes:
    """What the answers of one model and licence share, as the head of their frame."""
    return msgspec.json.encode(
        {"model": item.job.served.identity, "runtime": runtime, "licence": item.licence, "log": log}
    )


def answered(item: Item, entry: Entry, key: bytes) -> bytes | None:
    """A row's entry in a frame of answers; None if it has an error instead."""
    number, leaf = item.job.number, bytes.fromhex(entry.leaf)
    if item.error is None:
        return pack_entry(Answered(number, entry.index, leaf, key, Kind.OK, item.answer or b""))
    if isinstance(item.error, NotInterpretable):
        reason = item.error.message.encode()
        return pack_entry(Answered(number, entry.index, leaf, key, Kind.NOT_INTERPRETABLE, reason))
    return None


def refused(item: Item) -> bytes:
    """The frame of a row that has an error."""
    if item.error is None:
        raise AssertionError("an answer is no error")
    return error_frame(item.job.number, item.error)


def frames(head: bytes, entries: Iterable[bytes]) -> Iterator[bytes]:
    """Frames of answers that share a head, none of them too large."""
    parts: list[bytes] = []
    size = 0
    for entry in entries:
        if parts and size + len(entry) > _MOST_IN_FRAME:
            yield pack(FrameType.ANSWERS, 0, head, b"".join(parts))
            parts, size = [], 0
        parts.append(entry)
        size += len(entry)
    if parts:
        yield pack(FrameType.ANSWERS, 0, head, b"".join(parts))
