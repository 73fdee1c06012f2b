"""Records, and what they commit to: canonical JSON, keyed BLAKE3, and numbers as the bytes that they may have been.

JSON does not say whether a number was a 32-bit float or an integer. A record commits to a tensor's bytes, so every type
that could hold the numbers is offered, and the commitment decides.
"""

from __future__ import annotations

import hmac
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pericard_client.errors import EvidenceError, MalformedEvidence, VerifierMissing
from pericard_client.models import Values

_LONGEST = 1 << 16
_DEEPEST = 8
_LARGEST = 2**53 - 1
_TYPES = ("<f4", "<f8", "<i8", "<i4")
_MOST_OUTPUTS = 6
_HASH = re.compile(r"[0-9a-f]{64}")


def members(record: str) -> dict[str, Any]:
    """A record's members; what is not its one canonical encoding is refused.

    Raises:
        MalformedEvidence: it is not.
    """
    try:
        if len(record) > _LONGEST or not record.isascii():
            raise ValueError("length")
        found = json.loads(record, parse_float=_refuse, parse_constant=_refuse)
        if not isinstance(found, dict) or not _exact(found, 1):
            raise ValueError("form")
        # repeated names, other orders, spaces and other escapes all fail this one test
        if json.dumps(found, sort_keys=True, separators=(",", ":")) != record:
            raise ValueError("canonical")
    except (ValueError, RecursionError) as error:
        raise MalformedEvidence("record: is not in canonical form") from error
    return found


def _exact(value: object, depth: int) -> bool:
    if isinstance(value, dict | list) and depth > _DEEPEST:
        return False
    if isinstance(value, dict):
        named = all(name and name.isascii() for name in value)
        return named and all(_exact(each, depth + 1) for each in value.values())
    if isinstance(value, list):
        return all(_exact(each, depth + 1) for each in value)
    if isinstance(value, str):
        value.encode()  # a lone surrogate raises
    return not isinstance(value, int) or isinstance(value, bool) or abs(value) <= _LARGEST


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def open_commitment(
    fields: Mapping[str, Any], label: str, opening_key: str, forms: Iterable[bytes], refusal: type[EvidenceError]
) -> None:
    """Hold data against what a record commits to.

    Args:
        fields: of the record.
        label: ``input`` or ``answer``.
        opening_key: 64 hex digits; came with the answer.
        forms: the same numbers in every type that they may have had.
        refusal: what is raised if none of them is what was committed to.
    """
    try:
        from blake3 import blake3  # noqa: PLC0415  (the extra may not be installed)
    except ImportError as error:
        raise VerifierMissing("evidence: verifying it takes blake3, which is not installed") from error
    said = fields.get(label)
    if not _HASH.fullmatch(opening_key):
        raise MalformedEvidence("opening key: is not 32 bytes in lower-case hex")
    if isinstance(said, str):
        for data in forms:
            found = blake3(label.encode("ascii") + b"\0" + data, key=bytes.fromhex(opening_key)).hexdigest()
            if hmac.compare_digest(found.encode(), said.encode()):
                return
    raise refusal(f"record {fields.get('index')}: commits to another {label}, or the opening key is not its own")


def forms_of_outputs(outputs: Mapping[str, Values]) -> Iterator[bytes]:
    """All outputs of a prediction, one after the other in the answer's order.

    Raises:
        MalformedEvidence: there are none, or more than can be tried.
    """
    if not 0 < len(outputs) <= _MOST_OUTPUTS:
        raise MalformedEvidence(
            f"answer: has {len(outputs)} outputs, 1 to {_MOST_OUTPUTS} can be held against a record"
        )
    arrays = [np.array(value) for value in outputs.values()]
    for parts in itertools.product(*(list(forms_of_samples(array)) for array in arrays)):
        yield b"".join(parts)


def forms_of_samples(samples: npt.NDArray[Any]) -> Iterator[bytes]:
    """One strip's samples, row-major and little-endian."""
    for kind in _TYPES:
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is not what was recorded
            yield samples.astype(kind).tobytes()
