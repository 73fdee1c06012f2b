"""Repeating an answer: the recorded row at its recorded place in a batch of the recorded size, and zeros elsewhere.

Rules of this module: it knows no file. The record was read under a signed head and the model came through every check
before either gets here. One batch is computed, and the record's own commitment decides whether the bits are the same;
nobody's word does. An answer does not leave: what comes out is a verdict, or the leaf of ``ReplayError`` that says what
differs. The batch's other rows are not recorded, since a row's answer depends on its bucket, its place, the threads and
the device, and not on what its neighbours hold; a model for which that is not so cannot be replayed, and is found here.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pericard.audit import commit
from pericard.audit.proof import leaf_hash
from pericard.audit.record import parse
from pericard.errors import (
    AnswerDiffers,
    InputDiffers,
    NothingToReplay,
    OpeningKeyWrong,
    OtherHost,
    OtherModel,
    OtherRuntime,
    ReceiptInvalid,
    RecordAltered,
    ReplayImpossible,
    SavedAnswerDiffers,
)
from pericard.runtime.backend import Array
from pericard.runtime.loader import LoadedModel

_MOST_THREADS = 1024
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class Claim:
    """What a caller kept of an answer.

    Attributes:
        log: the log's name.
        index: the record's place in it.
        leaf: the record's leaf hash, hex.
        opening_key: 32 bytes; opens this record.
        outputs: the saved answer by output name, as its JSON has it; None if it was not kept.
    """

    log: str
    index: int
    leaf: str
    opening_key: bytes
    outputs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a record says that its answer was computed.

    Attributes:
        index: the record's place in the log.
        model: name and version, for people.
        manifest: SHA-256 of the model's manifest, hex; its identity.
        bucket: padded batch size.
        place: the row's place in the batch, from 0.
        threads: threads per operator.
        device: ``cpu`` or ``cuda:N``.
        runtime: digest of the installed distributions.
        input: commitment to the row's bytes.
        answer: commitment to the bytes of all outputs.
    """

    index: int
    model: str
    manifest: str
    bucket: int
    place: int
    threads: int
    device: str
    runtime: str
    input: str
    answer: str


@dataclass(frozen=True, slots=True)
class Here:
    """What an answer is repeated with.

    Attributes:
        runtime: digest of the installed distributions.
        host: digest of the host's class.
        threads: threads per operator, as the framework says.
    """

    runtime: str
    host: str
    threads: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The same bits.

    Attributes:
        conditions: how they were computed, both times.
        same_runtime: whether the runtime is the recorded one.
        same_host: whether the host is of the recorded class; None if no class was recorded.
        saved: whether the saved answer was compared too.
    """

    conditions: Conditions
    same_runtime: bool
    same_host: bool | None
    saved: bool


def conditions(data: bytes, claim: Claim) -> Conditions:
    """Read from a record that was proven to be in the log how its answer was computed.

    Args:
        data: the record's bytes.
        claim: what names it.

    Raises:
        RecordAltered: it is not the record that the receipt names.
        NothingToReplay: it is not of an answer, or does not say how that was computed.
    """
    if not hmac.compare_digest(leaf_hash(data).hex().encode(), claim.leaf.encode()):
        raise RecordAltered(
            f"record {claim.index}: is not the one that the receipt names; one of the two was altered",
            hint="compare both with other copies: the leaf of the answer as it came, and the log that was sent away",
        )
    record = parse(data)
    event, outcome = record.get("event"), record.get("outcome")
    if event != "predict" or outcome != "ok":
        what = f"of an answer that was {outcome}" if event == "predict" else f"of the event {event}"
        raise NothingToReplay(
            f"record {claim.index}: is {what}, so there are no bits to repeat",
            hint="only an answer with status ok can be replayed",
        )
    model = record.get("model")
    found = {**(model if isinstance(model, dict) else {}), **record}
    try:
        made = Conditions(
            index=claim.index,
            model=f"{_text(found, 'name')} {_text(found, 'version')}",
            bucket=_number(found, "bucket"),
            place=_number(found, "place"),
            threads=_number(found, "threads"),
            **{name: _text(found, name) for name in ("manifest", "device", "runtime", "input", "answer")},
        )
    except (KeyError, TypeError) as error:
        raise NothingToReplay(f"record {claim.index}: does not say how its answer was computed ({error})") from error
    if not (0 <= made.place < made.bucket and 1 <= made.threads <= _MOST_THREADS):
        raise NothingToReplay(f"record {claim.index}: place {made.place} of {made.bucket} is not in a batch")
    return made


def replay(
    wanted: Conditions, claim: Claim, inputs: bytes, model: LoadedModel, here: Here, *, host: str | None
) -> Verdict:
    """Compute an answer again and compare its bits with the recorded commitment.

    Args:
        wanted: how it was computed.
        claim: what the caller kept.
        inputs: the row's bytes: each input in the manifest's order, row-major, little-endian.
        model: the loaded model, on the recorded device.
        here: what it is computed with now.
        host: digest of the recorded host's class; None if none was recorded.

    Raises:
        OtherModel, ReplayImpossible: this is not what answered, or cannot compute as it did.
        InputDiffers, OpeningKeyWrong, ReceiptInvalid: this is not what was asked, or not what opens the record.
        OtherRuntime, OtherHost, AnswerDiffers: the bits differ, and these are the reasons known.
        SavedAnswerDiffers: they are the same, and the saved answer is another.
        BackendFailed: the computation failed.
    """
    _require_same(wanted, model, here)
    saved = None if claim.outputs is None else _saved(claim.outputs, model)
    _check_input(wanted, claim, inputs, saved)
    found = _compute(wanted, inputs, model)
    same_runtime = here.runtime == wanted.runtime
    same_host = None if host is None else here.host == host
    kept = saved is None or _opens(claim, "answer", _bytes(saved), wanted.answer)
    if not _opens(claim, "answer", _bytes(found), wanted.answer):
        off = "" if saved is None or not kept else f"; {_furthest(found, saved, model)}"
        raise _difference(wanted, here, off, same_host=same_host)
    if saved is not None and not kept:
        raise SavedAnswerDiffers(
            f"record {wanted.index}: was repeated bit for bit, and the saved answer is another one; "
            f"{_furthest(found, saved, model)}",
            hint="the saved answer was changed after it left the server, or belongs to another receipt",
        )
    return Verdict(wanted, same_runtime, same_host, saved is not None)


def _require_same(wanted: Conditions, model: LoadedModel, here: Here) -> None:
    if model.manifest_hash != wanted.manifest:
        about = model.description
        raise other_model(wanted, f"{about.name} {about.version} ({model.manifest_hash[:_SHOWN]})")
    if model.device != wanted.device:
        raise ReplayImpossible(
            f"record {wanted.index}: was computed on {wanted.device}, the model is on {model.device}"
        )
    if here.threads != wanted.threads:
        raise ReplayImpossible(
            f"record {wanted.index}: was computed with {_threads(wanted.threads)}, here are {_threads(here.threads)}"
        )
    if wanted.bucket not in model.buckets:
        raise ReplayImpossible(
            f"record {wanted.index}: was computed in a batch of {wanted.bucket}, and the model is asked here in "
            f"batches of {', '.join(map(str, model.buckets))}",
            hint=None if model.batching is None else f"on this host {model.batching}",
        )


def other_model(wanted: Conditions, given: str) -> OtherModel:
    """The refusal of a model that did not give the answer."""
    return OtherModel(
        f"record {wanted.index}: was answered by {wanted.model} ({wanted.manifest[:_SHOWN]}), and what is here is "
        f"{given}",
        hint="replay takes the sealed file that answered: the same manifest, not only the same name",
    )


def _check_input(wanted: Conditions, claim: Claim, inputs: bytes, saved: tuple[Array, ...] | None) -> None:
    """Whether this was asked. A key that opens the saved answer and not the input is right, so the input is not."""
    if _opens(claim, "input", inputs, wanted.input):
        return
    if saved is None:
        raise InputDiffers(
            f"record {wanted.index}: commits to another input, or this is not its opening key",
            hint="give the strip as it was sent; a saved answer with its outputs tells the two apart",
        )
    if _opens(claim, "answer", _bytes(saved), wanted.answer):
        raise InputDiffers(
            f"record {wanted.index}: commits to another input",
            hint="give the strip as it was sent; of several, --item says which",
        )
    raise OpeningKeyWrong(
        f"record {wanted.index}: the opening key opens neither its input nor its answer",
        hint="take the opening key, the input and the answer of one and the same prediction",
    )


def _compute(wanted: Conditions, inputs: bytes, model: LoadedModel) -> tuple[Array, ...]:
    """The outputs of the row, computed where it stood."""
    batch, offset = [], 0
    for spec in model.description.inputs:
        whole = np.zeros((wanted.bucket, *spec.row_shape), dtype=spec.dtype)
        row = np.frombuffer(inputs, dtype=np.uint8, count=spec.row_bytes, offset=offset)
        whole[wanted.place] = row.view(spec.dtype).reshape(spec.row_shape)
        batch.append(whole)
        offset += spec.row_bytes
    return tuple(output[wanted.place] for output in model.infer(tuple(batch)))


def _saved(outputs: Mapping[str, Any], model: LoadedModel) -> tuple[Array, ...]:
    """A saved answer's numbers, in the manifest's order and types."""
    specs = [output.spec for output in model.description.outputs]
    try:
        if outputs.keys() != {spec.name for spec in specs}:
            raise ValueError("names")
        with np.errstate(over="ignore"):  # what does not fit becomes an infinity, which no answer holds
            found: tuple[Array, ...] = tuple(np.array(outputs[spec.name], dtype=spec.dtype) for spec in specs)
    except (TypeError, ValueError, OverflowError) as error:
        raise _unfit(model) from error
    if any(array.shape != spec.row_shape for array, spec in zip(found, specs, strict=True)):
        raise _unfit(model)
    return found


def _unfit(model: LoadedModel) -> ReceiptInvalid:
    return ReceiptInvalid(
        f"saved answer: its outputs are not those of model {model.description.name}",
        hint="give the answer as it came, or only its receipt",
    )


def _difference(
    wanted: Conditions, here: Here, off: str, *, same_host: bool | None
) -> OtherRuntime | OtherHost | AnswerDiffers:
    """Why the bits differ, as far as is known: what the promise does not cover comes first."""
    told = f"record {wanted.index}: the bits differ{off}"
    if here.runtime != wanted.runtime:
        return OtherRuntime(
            f"{told}; the runtime is {here.runtime[:_SHOWN]}, not the recorded {wanted.runtime[:_SHOWN]}",
            hint="replay in the runtime that answered: install its lock; another one promises no bits",
        )
    if same_host is not True:
        known = "no class of host was recorded" if same_host is None else "this host is of another class"
        return OtherHost(
            f"{told}; {known}",
            hint="replay on the host that answered, or on one of its kind; another CPU or card promises no bits",
        )
    return AnswerDiffers(
        f"{told}; model, runtime, host class, bucket, place, threads and device are the recorded ones",
        hint="the recorded answer was not computed as its record says, or the model lets the rows of a batch disturb "
        "each other; keep the log and ask the vendor",
    )


def _furthest(found: tuple[Array, ...], saved: tuple[Array, ...], model: LoadedModel) -> str:
    names = [output.spec.name for output in model.description.outputs]
    with np.errstate(invalid="ignore"):
        off = [
            float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64)), initial=0.0))
            for one, other in zip(found, saved, strict=True)
        ]
    most = int(np.argmax(off))
    return f"the largest difference is {off[most]:.3g}, in {names[most]}"


def _opens(claim: Claim, label: Any, data: bytes, said: str) -> bool:  # noqa: ANN401  (a Literal of audit's)
    return hmac.compare_digest(commit(claim.opening_key, label, data).encode(), said.encode())


def _bytes(outputs: tuple[Array, ...]) -> bytes:
    return b"".join(output.tobytes() for output in outputs)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(name)
    return value
