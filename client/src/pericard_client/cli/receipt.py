"""``pericard-client receipt``: a saved answer, held against the records that the server made of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from pericard_client import wire
from pericard_client.cli.voice import report
from pericard_client.errors import ClientError, MalformedEvidence, UnexpectedReply
from pericard_client.evidence import LogKey, Verified, forms_of_outputs, forms_of_samples, verify
from pericard_client.formats import prepare, read
from pericard_client.models import ModelIdentity, ModelMetadata, Proof, Receipt, SignalContract, TensorSpec

_LARGEST = 256 << 20  # bytes of a file
_FORM = "give what the server answered, or what predict --out json printed"


@dataclass(frozen=True, slots=True)
class Kept:
    """One prediction of a saved answer.

    Attributes:
        receipt: names its record.
        outputs: by name; None where there are none.
        place: which strip of the request, from 0.
        count: strips of the request.
        recording: what ``predict`` said of the recording that it was cut from; None in a server's own answer.
    """

    receipt: Receipt
    outputs: Mapping[str, Any] | None
    place: int
    count: int
    recording: Mapping[str, Any] | None


def kept(path: Path) -> list[Kept]:
    """Every prediction with a receipt in a saved answer.

    Raises:
        MalformedEvidence: it holds none.
    """
    try:
        value = json.loads(_read(path))
        recordings = value.get("recordings") if isinstance(value, dict) else None
        found = (
            _predictions(value, None)
            if recordings is None
            else [one for each in recordings for one in _predictions({"predictions": each.get("windows", [])}, each)]
        )
    except OSError as error:
        raise MalformedEvidence(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedEvidence(f"{path}: is not a saved answer", hint=_FORM) from error
    if not found:
        raise MalformedEvidence(f"{path}: holds no receipt", hint=_FORM)
    return found


def _predictions(value: Any, recording: Mapping[str, Any] | None) -> list[Kept]:  # noqa: ANN401  (JSON)
    if "log" in value:
        value = {"status": "", "receipt": value}
    every = value.get("predictions", [value])
    return [
        Kept(_receipt(one["receipt"]), one.get("outputs") or None, place, len(every), recording)
        for place, one in enumerate(every)
        if one.get("receipt") is not None
    ]


def _receipt(fields: Mapping[str, Any]) -> Receipt:
    made = Receipt(fields["log"], fields["index"], fields["leaf"], fields["opening_key"])
    texts = (made.log, made.leaf, made.opening_key)
    if not all(isinstance(text, str) for text in texts) or type(made.index) is not int:
        raise TypeError("receipt")
    return made


class ReceiptRun:
    """One run of ``receipt``."""

    def __init__(self, key: Path, strip: Path | None, out: str, options: Mapping[str, Any]) -> None:
        """Take the log's public key, what was sent, and how to print."""
        self._key = LogKey.read(key)
        self._strip = strip
        self._out = out
        self._options = options
        self._document: list[dict[str, Any]] = []

    def run(self, answer: Path, proof: Path | None, item: int | None) -> int:
        """Verify what was kept, print, and return the exit code."""
        every = kept(answer)
        if item is not None:
            if item >= len(every):
                raise MalformedEvidence(f"{answer}: holds {len(every)} receipts", hint="--item N counts from 0")
            every = [every[item]]
        code = 0
        if proof is not None:
            given = _proof(proof)
            code = self._show([one for one in every if one.receipt.index == given.index] or every[:1], given)
        else:
            from pericard_client.cli.verbs import connect

            with connect(dict(self._options)) as client:
                for one in every:
                    code = max(code, self._show([one], client.proof(one.receipt.index)))
        if self._out == "json":
            click.echo(json.dumps({"receipts": self._document}))
        return code

    def _show(self, chosen: list[Kept], proof: Proof) -> int:
        one = chosen[0]
        try:
            found = self._verify(one, proof)
        except ClientError as error:
            self._document.append({"index": one.receipt.index, "error": {"code": error.code, "message": error.message}})
            return report(error)
        self._document.append(
            {
                "index": one.receipt.index,
                "log": found.log,
                "size": found.size,
                "opened": found.opened,
                "record": found.record,
            }
        )
        if self._out != "json":
            parts = ", ".join(("record", *found.opened))
            click.echo(f"  {one.receipt.index:<10}verified: {parts}; under a signed head of {found.size} records")
        return 0

    def _verify(self, one: Kept, proof: Proof) -> Verified:
        answer = None if one.outputs is None else forms_of_outputs(one.outputs)
        sent = None if self._strip is None else self._sent(self._strip, one)
        return verify(proof, self._key, receipt=one.receipt, answer=answer, sent=sent)

    def _sent(self, path: Path, one: Kept) -> Iterator[bytes]:
        if one.recording is not None:
            return forms_of_samples(self._window(path, one))
        try:
            return _strip(path, one)
        except (OSError, EOFError, ValueError, TypeError, RecursionError) as error:
            reason = (
                (error.strerror or str(error)).lower() if isinstance(error, OSError) else f"is not {one.count} strips"
            )
            raise MalformedEvidence(
                f"{path}: {reason}", hint="give what was sent: .json, .npy, or the bytes"
            ) from error

    def _window(self, path: Path, one: Kept) -> npt.NDArray[Any]:
        """The window that ``predict`` cut from a recording, cut again."""
        given = self._options
        leads = tuple(name.strip() for name in (given["leads"] or "").split(",") if name.strip())
        recording = read(path, sampling_rate=given["sampling_rate"], unit=given["unit"], leads=leads)
        strips = prepare(recording, _described(one.recording or {})).samples
        if len(strips) != one.count:
            raise MalformedEvidence(f"{path}: gives {len(strips)} windows, the answer is about {one.count}")
        window: npt.NDArray[np.float32] = strips[one.place].astype(np.float32)
        return window


def _described(recording: Mapping[str, Any]) -> ModelMetadata:
    """As much of a model's description as cutting takes: what ``predict`` said that it sent."""
    try:
        sent, model = recording["sent"], recording["model"]
        rate, leads = float(sent["sampling_rate"]), [str(lead) for lead in sent["leads"]]
        shape = (-1, len(leads), round(float(sent["window_seconds"]) * rate))
        return ModelMetadata(
            identity=ModelIdentity(**model), versions=(), platform="", inputs=(TensorSpec("", "FP32", shape),),
            outputs=(), runtime="", intended_use=None, licence=None, licence_not_after=None,
            signal=SignalContract(rate, str(sent["unit"]), tuple((lead,) for lead in leads)), score=None, timeline=None,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedEvidence("answer: does not say what was sent", hint=_FORM) from error


def _strip(path: Path, one: Kept) -> Iterator[bytes]:
    """One strip of what was sent to the server as it is."""
    data = _read(path)
    if path.suffix == ".npy":
        return forms_of_samples(_cut(np.load(io.BytesIO(data), allow_pickle=False), one))
    if path.suffix != ".json":
        return iter([_cut(np.frombuffer(data, np.uint8), one).tobytes()])
    value = json.loads(data)
    inputs = value.get("inputs") if isinstance(value, dict) else value
    if not isinstance(inputs, str):
        return forms_of_samples(_cut(np.array(inputs, dtype=np.float64), one))
    samples = base64.b64decode(inputs, validate=True)
    if value.get("gain") is None:
        return iter([_cut(np.frombuffer(samples, np.uint8), one).tobytes()])
    scaled = np.divide(np.frombuffer(samples, "<i2"), float(value["gain"]), dtype=np.float64)
    return forms_of_samples(_cut(scaled, one))


def _cut(array: npt.NDArray[Any], one: Kept) -> npt.NDArray[Any]:
    size, rest = divmod(array.size, one.count)
    if rest or not size:
        raise ValueError("size")
    chosen: npt.NDArray[Any] = array.reshape(one.count, size)[one.place]
    return chosen


def _proof(path: Path) -> Proof:
    try:
        return wire.parse_proof(wire.Reply(200, {}, _read(path)))
    except OSError as error:
        raise MalformedEvidence(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnexpectedReply as error:
        raise MalformedEvidence(
            f"{path}: is not a receipt", hint="give what the server's /audit/receipts gave"
        ) from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError("size")
    return data
