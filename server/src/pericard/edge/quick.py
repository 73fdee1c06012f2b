"""The quick way through a JSON body: numbers straight from the text into one array, for a body that is as it should be.

simdjson reads the whole text once and hands its numbers over in one piece. Whatever is out of order (a field that is
unknown or stands twice, another shape, a value that is no number) gives None, and the careful way of
:mod:`pericard.edge.predict` says what is wrong: this module accepts less than it, and nothing else.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, TypeGuard

import numpy as np
import simdjson
from numpy.typing import NDArray

from pericard.edge.catalog import Entry
from pericard.edge.inference import Row

_FIELDS = frozenset({"inputs", "model", "version", "sampling_rate", "unit", "leads"})
_KINDS = {"f": "d", "i": "i", "u": "u"}  # numpy's kinds as simdjson's
_LONGEST_TEXT = 256
_MOST_LEADS = 64
_MARK = b"\xef\xbb\xbf"
_LARGE = 32 << 10
_OPENING = ord("[")


class Reader:
    """Reads one body at a time; its memory is used again for the next."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def read(self, body: bytes) -> Quick | None:
        """The fields of a body, and its numbers on request; None if anything about it is unusual.

        What was returned must be let go of before the next call.
        """
        try:
            found = self._parser.parse(body)
        except RuntimeError:  # the last one is still held, by a traceback perhaps
            self._parser = simdjson.Parser()
            return None
        except ValueError:
            return None
        if not isinstance(found, simdjson.Object) or body.startswith(_MARK):
            return None
        names = list(found.keys())
        if len(set(names)) != len(names) or not _FIELDS.issuperset(names) or "inputs" not in names:
            return None
        quick = Quick(found, names, _lists(body))
        return quick if quick.regular else None


class Quick:
    """A body whose fields are what they should be.

    Attributes:
        regular: whether they are; everything else rests on it.
    """

    def __init__(self, found: Any, names: list[str], brackets: int) -> None:  # noqa: ANN401  (a package without types)
        given = {name: found[name] for name in names}
        self.model: str | None = given.get("model")
        self.version: str | None = given.get("version")
        self.unit: str | None = given.get("unit")
        rate, leads = given.get("sampling_rate"), given.get("leads")
        self.sampling_rate: float | None = rate
        self.leads: tuple[str, ...] | None = None
        self._inputs = given["inputs"]
        self._brackets = brackets
        texts = all(value is None or _is_short(value) for value in (self.model, self.version, self.unit))
        self.regular = texts and (rate is None or type(rate) in {int, float}) and type(self._inputs) is simdjson.Array
        if self.regular and leads is not None:
            if type(leads) is not simdjson.Array or len(leads) > _MOST_LEADS:
                self.regular = False
                return
            self._brackets -= 1
            listed = leads.as_list()
            self.leads = tuple(lead for lead in listed if _is_short(lead))
            self.regular = len(self.leads) == len(listed)

    def rows(self, model: Entry, *, limit: int) -> list[Row] | None:
        """The strips of a model with one input; None if they are not regular lists of numbers of its shape."""
        spec = model["inputs"][0]
        shape: list[int] = spec["shape"][1:]
        if self._brackets > 1 + limit * sum(math.prod(shape[:depth]) for depth in range(len(shape))):
            return None  # before anybody walks through a flood of lists
        array = self._array(shape, np.dtype(spec["dtype"]), limit)
        return None if array is None else [(row,) for row in array]

    def _array(self, shape: list[int], dtype: np.dtype[np.generic], limit: int) -> NDArray[np.generic] | None:
        kind = _KINDS.get(dtype.kind)
        if kind is None or not any(self._fits(form) for form in _forms(tuple(shape), self._depth())):
            return None
        try:
            numbers = np.frombuffer(self._inputs.as_buffer(of_type=kind), f"{'f' if kind == 'd' else kind}8")
        except (TypeError, ValueError, RuntimeError):
            return None
        count, rest = divmod(len(numbers), math.prod(shape))
        if rest or not 1 <= count <= limit:
            return None
        if kind != "d":
            info = np.iinfo(dtype)  # type: ignore[type-var]  # an integer type, by its kind
            if numbers.min() < info.min or numbers.max() > info.max:
                return None
        return numbers.reshape(count, -1)

    def _depth(self) -> int:
        """How deep the lists are nested where they begin."""
        depth, first = 1, self._inputs
        while len(first) and type(first[0]) is simdjson.Array:
            depth, first = depth + 1, first[0]
        return depth

    def _fits(self, form: tuple[int, ...]) -> bool:
        """Whether the lists have a form, -1 standing for any length, and there is no list beside them."""
        level, lists = [self._inputs], 1
        for depth, length in enumerate(form, 1):
            for found in level:
                if type(found) is not simdjson.Array or length not in {-1, len(found)}:
                    return False
            if depth < len(form):
                level = [part for found in level for part in found]
                lists += len(level)
        return lists == self._brackets


def _lists(body: bytes) -> int:
    """How many lists begin in a body; numpy counts faster, once it is worth the call."""
    if len(body) < _LARGE:
        return body.count(b"[")
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == _OPENING))


def _is_short(value: object) -> TypeGuard[str]:
    return type(value) is str and len(value) <= _LONGEST_TEXT


@cache
def _forms(shape: tuple[int, ...], depth: int) -> tuple[tuple[int, ...], ...]:
    """The nestings of a depth that are taken: one strip or several, of one channel also without the list around it."""
    forms = [shape, (-1, *shape)]
    if len(shape) == 2 and shape[0] == 1:  # noqa: PLR2004  (one channel)
        forms += [(shape[1],), (-1, shape[1])]
    return tuple(form for form in forms if len(form) == depth)
