"""The quick way through a JSON body: numbers straight from the text into one array, for a body that is as it should be.

simdjson reads the whole text once and hands its numbers over in one piece. Whatever is out of order (a field that is
unknown or stands twice, another shape, a value that is no number) gives None, and the careful way of
:mod:`pericard.edge.predict` says what is wrong: this module accepts less than it, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
from functools import cache
from typing import Any, NamedTuple, TypeGuard

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
_INPUTS = b'"inputs"'
_LONGEST_FRAME = 1024
_MOST_SUFFIXES = 4
_MOST_FRAMES = 1024


class Fields(NamedTuple):
    """What a body says beside its numbers."""

    model: str | None = None
    version: str | None = None
    sampling_rate: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None


class Frame:
    """The text around the numbers of a body that was read before.

    Attributes:
        suffix: what stands behind them.
        fields: what it says; the same for every body with this text.
        agreed: the model whose contract it was held against.
    """

    __slots__ = ("agreed", "fields", "suffix")

    def __init__(self, suffix: bytes, fields: Fields) -> None:
        self.suffix = suffix
        self.fields = fields
        self.agreed: object = None


class Reader:
    """Reads one body at a time; its memory is used again for the next."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()
        self._frames: dict[bytes, list[Frame]] = {}

    def read(self, body: bytes) -> Quick | None:
        """The fields of a body, and its numbers on request; None if anything about it is unusual.

        What was returned must be let go of before the next call.
        """
        known = self._known(body)
        if known is not None:
            return known
        found = self._parsed(body)
        if not isinstance(found, simdjson.Object) or body.startswith(_MARK):
            return None
        names = list(found.keys())
        if len(set(names)) != len(names) or not _FIELDS.issuperset(names) or "inputs" not in names:
            return None
        given = {name: found[name] for name in names}
        fields, brackets = _fields(given), _lists(body)
        if fields is None or type(given["inputs"]) is not simdjson.Array:
            return None
        inside = brackets - (given.get("leads") is not None)
        return Quick(given["inputs"], inside, self._remember(body, names, fields))

    def _known(self, body: bytes) -> Quick | None:
        """A body whose text around the numbers is known; what is in its place must be one list of numbers."""
        start = _start(body)
        for frame in self._frames.get(body[:start], ()):
            if body.endswith(frame.suffix):
                numbers = body[start : len(body) - len(frame.suffix)]
                found = self._parsed(numbers)
                return Quick(found, _lists(numbers), frame) if type(found) is simdjson.Array else None
        return None

    def _remember(self, body: bytes, names: list[str], fields: Fields) -> Frame:
        """Keep the text around a body's numbers, if without them it says the same: so says a parser that sees all."""
        start = _start(body)
        quote = body.find(b'"', start)  # numbers have none
        end = body.rfind(b"]", start, quote if quote >= 0 else len(body)) + 1
        frame = Frame(body[end:], fields)
        kept = self._frames.setdefault(body[:start], [])
        if 0 < start < _LONGEST_FRAME and 0 < len(body) - end < _LONGEST_FRAME and len(kept) < _MOST_SUFFIXES:
            with contextlib.suppress(ValueError):
                pairs = json.loads(body[:start] + b"null" + body[end:], object_pairs_hook=list)
                if [name for name, _ in pairs] == names and dict(pairs)["inputs"] is None:
                    kept.append(frame)
        if not kept:
            del self._frames[body[:start]]
        elif len(self._frames) > _MOST_FRAMES:
            self._frames.clear()
        return frame

    def _parsed(self, text: bytes) -> object:
        try:
            return self._parser.parse(text)
        except RuntimeError:  # the last one is still held, by a traceback perhaps
            self._parser = simdjson.Parser()
        except ValueError:
            pass
        return None


def _start(body: bytes) -> int:
    """Where the numbers begin, in a body that writes its fields as most do; 0 in any other."""
    name = body.find(_INPUTS)
    return max(0, body.find(b"[", name)) if name >= 0 else 0


def _fields(given: dict[str, Any]) -> Fields | None:
    """The fields, if each is of its type."""
    model, version, unit = given.get("model"), given.get("version"), given.get("unit")
    rate, leads = given.get("sampling_rate"), given.get("leads")
    texts = all(value is None or _is_short(value) for value in (model, version, unit))
    if not texts or (rate is not None and type(rate) not in {int, float}):
        return None
    if leads is None:
        return Fields(model, version, rate, unit)
    if type(leads) is not simdjson.Array or len(leads) > _MOST_LEADS:
        return None
    listed = leads.as_list()
    named = tuple(lead for lead in listed if _is_short(lead))
    return Fields(model, version, rate, unit, named) if len(named) == len(listed) else None


class Quick:
    """A body whose fields are what they should be.

    Attributes:
        frame: the text around its numbers, and what that says.
    """

    __slots__ = ("_brackets", "_inputs", "frame")

    def __init__(self, inputs: Any, brackets: int, frame: Frame) -> None:  # noqa: ANN401  (a package without types)
        self._inputs = inputs
        self._brackets = brackets
        self.frame = frame

    def rows(self, model: Entry, *, limit: int) -> list[Row] | None:
        """The strips of a model with one input; None if they are not regular lists of numbers of its shape."""
        spec = model["inputs"][0]
        shape: list[int] = spec["shape"][1:]
        if self._brackets > 1 + limit * _lists_of(tuple(shape)):
            return None  # before anybody walks through a flood of lists
        array = self._array(tuple(shape), _dtype(spec["dtype"]), limit)
        return None if array is None else [(row,) for row in array]

    def _array(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], limit: int) -> NDArray[np.generic] | None:
        kind = _KINDS.get(dtype.kind)
        if kind is None or not any(map(self._fits, _forms(shape, self._depth()))):
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


_dtype = cache(np.dtype)


@cache
def _lists_of(shape: tuple[int, ...]) -> int:
    """How many lists one strip may take."""
    return sum(math.prod(shape[:depth]) for depth in range(len(shape)))


@cache
def _forms(shape: tuple[int, ...], depth: int) -> tuple[tuple[int, ...], ...]:
    """The nestings of a depth that are taken: one strip or several, of one channel also without the list around it."""
    forms = [shape, (-1, *shape)]
    if len(shape) == 2 and shape[0] == 1:  # noqa: PLR2004  (one channel)
        forms += [(shape[1],), (-1, shape[1])]
    return tuple(form for form in forms if len(form) == depth)
