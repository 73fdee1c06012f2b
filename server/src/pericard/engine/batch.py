"""One batch of one model: rows are copied once into memory of the engine's own, checked there, and computed.

Whatever is wrong with a row is that row's error, and it leaves the batch before the forward pass; a pass that fails is
halved until the row that is to blame stands alone. Rows never share anything but the pass: what a row holds was held
against the model's declaration before it joined, so that no row's length or type can shift another's.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from pericard.engine import quality
from pericard.engine.repository import Served
from pericard.engine.scheduler import Job
from pericard.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotInterpretable, PericardError
from pericard.runtime.loader import LoadedModel
from pericard.sealed import Description

Bytes = NDArray[np.uint8]

_WRONG = {"f": "values that are not finite numbers", "b": "bytes that are neither true nor false"}


class Item:
    """One job on its way through a batch: either an error or an answer, and what its record takes.

    Attributes:
        job: the job.
        error: why there is no answer; None while there may be one.
        inputs: the bytes that were checked and computed on, one array for each input.
        answer: all outputs' bytes, in the manifest's order.
        licence: state of the model's licence when it was computed.
        bucket: size of the padded batch; zero if it was not computed.
        place: its row in the batch.
        path: which way through the model computed it; see ``runtime.paths``.
        queued: seconds that it waited.
        computed: seconds of its forward pass.
    """

    __slots__ = ("answer", "bucket", "computed", "error", "inputs", "job", "licence", "path", "place", "queued")

    def __init__(self, job: Job, error: PericardError | None = None) -> None:
        self.job = job
        self.error = error
        self.inputs: tuple[Bytes, ...] = ()
        self.answer: bytes | None = None
        self.licence = self.path = ""
        self.bucket = self.place = 0
        self.queued = self.computed = 0.0


def late(job: Job) -> Item:
    """An item that came to its turn too late."""
    return Item(job, DeadlineExceeded("request: waited longer than its deadline", hint="send fewer requests at a time"))


class Batcher:
    """Computes batches of one version on one device; used by one thread.

    Attributes:
        copied: seconds that the last batch took to be copied and checked.
    """

    def __init__(self, served: Served, device: int) -> None:
        """Make the batch's memory: one array per input, as long as the largest bucket."""
        self._about: Description = served.about
        self._model: LoadedModel = served.models[device]
        self._row_bytes = sum(spec.row_bytes for spec in self._about.inputs)
        self._buckets = served.buckets
        largest = self._buckets[-1]
        self._inputs = [np.zeros((largest, *spec.row_shape), dtype=spec.dtype) for spec in self._about.inputs]
        self._bytes = [array.reshape(largest, -1).view(np.uint8) for array in self._inputs]
        self._seconds: dict[int, float] = {}
        self.copied = 0.0

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._model.device

    def expected(self, count: int) -> float:
        """Seconds that the last pass over so many rows took; without end if there was none."""
        return self._seconds.get(self._bucket(count), math.inf)

    def compute(self, items: list[Item]) -> None:
        """Give every item its answer or its error.

        Args:
            items: of this version, at most as many as the largest bucket has rows.
        """
        started = time.monotonic()
        live = self._checked(self._copied(items))
        self.copied = time.monotonic() - started
        if live:
            self._forward(live)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _copied(self, items: list[Item]) -> list[Item]:
        """Copy every row that has the right size, one after the other."""
        live: list[Item] = []
        for item in items:
            row = item.job.link.row(item.job.question)
            if len(row) == self._row_bytes:
                self._put(item, len(live), np.frombuffer(row, np.uint8))
                live.append(item)
                continue
            if len(row) < self._row_bytes:  # what is longer is no row, and an edge could have its whole region copied
                item.inputs = (np.frombuffer(bytes(row), np.uint8),)
            item.error = self._misfit(len(row))
        return live

    def _misfit(self, size: int) -> PericardError:
        signal = self._about.signal
        if signal is not None:
            reason = quality.short(size, self._row_bytes, self._inputs[0].shape[-1], signal)
            if reason is not None:
                return NotInterpretable(reason)
        return InvalidInput(f"model {self._about.name}: takes {self._row_bytes} bytes an item, got {size}")

    def _put(self, item: Item, place: int, row: Bytes) -> None:
        """Make a row the batch's row of this place."""
        start = 0
        for array in self._bytes:
            array[place] = row[start : start + array.shape[1]]
            start += array.shape[1]
        item.place = place
        item.inputs = tuple(array[place] for array in self._bytes)

    def _checked(self, items: list[Item]) -> list[Item]:
        """Take out the items whose copies hold what no model may see, and close the gaps."""
        flawed = self._flaws(len(items)) if items else {}
        if not flawed:
            return items
        live: list[Item] = []
        for item in items:
            own = np.concatenate(item.inputs)
            error = flawed.get(item.place)
            if error is None:
                self._put(item, len(live), own)
                live.append(item)
            else:
                item.error, item.inputs = error, (own,)
        return live

    def _flaws(self, count: int) -> dict[int, PericardError]:
        """What is wrong with the first ``count`` rows, by place."""
        found: dict[int, PericardError] = {}
        for spec, array in zip(self._about.inputs, self._inputs, strict=True):
            wrong = _WRONG.get(array.dtype.kind)
            for place in _unfit(array[:count]):
                found.setdefault(place, InvalidInput(f"model {self._about.name}: input {spec.name} holds {wrong}"))
        if self._about.signal is not None and count:
            with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are told already
                reasons = quality.flaws(self._inputs[0][:count], self._about.signal)
            for place, reason in enumerate(reasons):
                if reason is not None:
                    found.setdefault(place, NotInterpretable(reason))
        return found

    # --- the pass ----------------------------------------------------------------------------------------------------

    def _forward(self, items: list[Item]) -> None:
        """Compute the rows that stand in the batch's memory, in the order of the items."""
        count = len(items)
        bucket = self._bucket(count)
        for array in self._inputs:
            array[count:bucket] = 0
        started = time.monotonic()
        try:
            outputs = self._model.infer(tuple(array[:bucket] for array in self._inputs))
        except BackendFailed as error:
            self._halve(items, error)
            return
        seconds = time.monotonic() - started
        self._seconds[bucket] = seconds
        path = self._model.paths.get(bucket, "")
        answers = np.concatenate([_as_bytes(output[:count]) for output in outputs], axis=1)
        lost = {place for output in outputs if output.dtype.kind == "f" for place in _not_finite(output[:count])}
        for place, item in enumerate(items):
            item.queued, item.computed, item.bucket = started - item.job.accepted, seconds, bucket
            item.path = path
            if place in lost:
                item.error = BackendFailed(f"model {self._about.name}: the answer is not a finite number")
            else:
                item.answer = answers[place].tobytes()

    def _halve(self, items: list[Item], error: BackendFailed) -> None:
        """One of them is to blame: halve until it stands alone, so that its neighbours are answered."""
        if len(items) == 1:
            items[0].error = error
            return
        rows = [np.concatenate(item.inputs) for item in items]
        middle = len(items) // 2
        for part in (slice(middle), slice(middle, None)):
            for place, (item, row) in enumerate(zip(items[part], rows[part], strict=True)):
                self._put(item, place, row)
            self._forward(items[part])
            for item, row in zip(items[part], rows[part], strict=True):
                item.inputs = (row,)  # the other half is put in its place

    def _bucket(self, count: int) -> int:
        return next(bucket for bucket in self._buckets if bucket >= count)


def _unfit(rows: NDArray[np.generic]) -> list[int]:
    """Places of the rows that hold what is no value of their type, or none to compute with."""
    if rows.dtype.kind == "b":
        return _places(rows.view(np.uint8) <= 1)
    return _not_finite(rows) if rows.dtype.kind == "f" else []


def _not_finite(rows: NDArray[np.generic]) -> list[int]:
    """Places of the rows that hold a value that is not finite."""
    return _places(np.isfinite(rows))


def _places(each: NDArray[np.bool_]) -> list[int]:
    """Places of the rows that are not good everywhere."""
    good = each.reshape(len(each), -1).all(axis=1)
    return [] if good.all() else [int(place) for place in np.nonzero(~good)[0]]


def _as_bytes(rows: NDArray[np.generic]) -> Bytes:
    """Rows as bytes, ``[n, bytes]``."""
    return np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
