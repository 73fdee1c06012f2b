"""Requests whose JSON was read before: who asks again and again sends the same head, and other bytes behind it.

What was parsed once from a head, for one version of a model, is parsed: the same bytes mean the same. Only requests of
one binary tensor are remembered, since nothing of the head then is data. The values are the engine's to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pericard.edge.oip.request import LENGTH_HEADER, InferRequest, Model, parse

_MOST_PLANS = 1024
_SHORT = re.compile("[0-9]{1,4}", re.ASCII)  # a longer head is not remembered


@dataclass(frozen=True, slots=True)
class _Plan:
    request: InferRequest  # without rows
    rows: int
    dtype: np.dtype[np.generic]
    count: int  # of elements in all rows
    size: int  # of everything behind the head, in bytes


class Plans:
    """Remembers heads; :meth:`parse` gives what ``request.parse`` would."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, bytes], _Plan] = {}

    def parse(
        self, body: bytes | memoryview, headers: Mapping[str, str], model: Model, *, limit_rows: int
    ) -> InferRequest:
        """Read an inference request; see :func:`pericard.edge.oip.request.parse` for everything but speed."""
        length = headers.get(LENGTH_HEADER, "")
        head = bytes(body[: int(length)]) if _SHORT.fullmatch(length) else b""
        if not head or len(head) != int(length):
            return parse(bytes(body), headers, model, limit_rows=limit_rows)
        key = (model["identity"]["manifest"], head)
        plan = self._plans.get(key)
        if plan is None or len(body) - len(head) != plan.size or plan.rows > limit_rows:
            request = parse(bytes(body), headers, model, limit_rows=limit_rows)
            self._remember(key, request, model, len(body) - len(head))
            return request
        values = np.frombuffer(body, plan.dtype, plan.count, len(head)).reshape(plan.rows, -1)
        return plan.request.again([(row,) for row in values])

    def _remember(self, key: tuple[str, bytes], request: InferRequest, model: Model, size: int) -> None:
        if len(model["inputs"]) != 1:
            return  # a head may name several inputs in any order
        dtype, count = np.dtype(model["inputs"][0]["dtype"]), request.rows[0][0].size * len(request.rows)
        if count * dtype.itemsize != size:
            return  # its data are JSON
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        self._plans[key] = _Plan(request.again([]), len(request.rows), dtype, count, size)
