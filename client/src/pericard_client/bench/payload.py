"""Requests as bytes, made before the clock runs, and the verdict on a reply.

Rules of this room: a reply counts as answered only if every strip of the request was; a refusal keeps the server's own
code. JSON goes to ``POST /predict``, exactly as the client sends it; binary tensors to the Open Inference Protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from pericard_client import wire
from pericard_client.client.conversation import Conversation
from pericard_client.errors import ClientError, ContractUnmet, UnexpectedReply, refusal
from pericard_client.formats import Strips
from pericard_client.formats.recording import Samples
from pericard_client.models import ModelMetadata
from pericard_client.wire.fields import Fields

Encoding: TypeAlias = Literal["json", "binary"]

LENGTH_HEADER = "inference-header-content-length"
_DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_ID = "x-request-id"
_MOST_KNOWN = 16


@dataclass(frozen=True, slots=True)
class Payload:
    """One request, whole but for its id, which stands between the two parts."""

    before: bytes = field(repr=False)
    after: bytes = field(repr=False)

    def parts(self, number: int) -> tuple[bytes, bytes, bytes]:
        """The bytes to send, with an id of its own."""
        return self.before, b"%032x" % number, self.after


def payloads(
    talk: Conversation, metadata: ModelMetadata, strips: Strips, groups: Sequence[Samples], encoding: Encoding
) -> list[Payload]:
    """One request for each group of strips ``[items][C][T]``.

    Raises:
        NotSendable: the values cannot be sent.
        ContractUnmet: the model's input has a type that is not written here.
    """
    make = _json_request if encoding == "json" else _binary_request
    return [_rendered(talk.address, make(talk, metadata, strips, group)) for group in groups]


def _json_request(talk: Conversation, metadata: ModelMetadata, strips: Strips, group: Samples) -> wire.Request:
    flow = talk.predict(
        group,
        model=metadata.identity.name,
        sampling_rate=strips.sampling_rate,
        unit=strips.unit,
        leads=strips.leads,
    )
    return next(flow).request  # the conversation's first words; it does no I/O


def _binary_request(talk: Conversation, metadata: ModelMetadata, strips: Strips, group: Samples) -> wire.Request:
    """Open Inference Protocol with the binary tensor extension: a JSON head, then the tensor's bytes."""
    spec = metadata.inputs[0]
    if spec.datatype not in _DTYPES:
        raise ContractUnmet(
            f"model {metadata.identity.name} takes {spec.datatype}, which is not sent as binary", hint="--encoding json"
        )
    tensor = np.ascontiguousarray(group, dtype=_DTYPES[spec.datatype]).tobytes()
    described = {
        "name": spec.name,
        "shape": list(group.shape),
        "datatype": spec.datatype,
        "parameters": {"binary_data_size": len(tensor)},
    }
    declared = {"sampling_rate": strips.sampling_rate, "unit": strips.unit, "leads": ",".join(strips.leads)}
    head = {"inputs": [described], "parameters": {"binary_data_output": True, **declared}}
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    base = next(talk.metadata(metadata.identity.name)).request  # for the path and the credential's header
    headers = {**base.headers, "content-type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
    return wire.Request("POST", f"{base.path}/infer", headers, text + tensor)


def _rendered(address: str, request: wire.Request) -> Payload:
    """HTTP/1.1 in bytes; ``wire`` has checked every header's value."""
    url = urlsplit(address)
    named = {"host": url.netloc, **request.headers, "content-length": str(len(request.body))}
    named.pop(_ID)
    fields = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    before = f"{request.method} {url.path}{request.path} HTTP/1.1\r\n{fields}{_ID}: ".encode("ascii")
    return Payload(before, b"\r\n\r\n" + request.body)


@dataclass(slots=True)
class Judge:
    """Whether a reply answers all strips of its request.

    The strict readers cost a generator more than everything else it does, so each way has a shorter one for the reply
    that it has already understood; whatever is different is read strictly.
    """

    encoding: Encoding
    items: int
    _known: set[tuple[bytes, int]] = field(default_factory=set, repr=False)

    def __call__(self, reply: wire.Reply) -> ClientError | None:
        """None where it does, else what is wrong."""
        try:
            if self.encoding == "json":
                self._predicted(reply)
            else:
                self._inferred(reply)
        except ClientError as error:
            return error
        return None

    def _predicted(self, reply: wire.Reply) -> None:
        # In JSON these bytes are a field, never a part of a string, whose quotes are escaped.
        if reply.status == HTTPStatus.OK and reply.body.count(b'"status":"ok"') == self.items:
            return
        for each in wire.parse_prediction(reply, strips=self.items).predictions:
            if each.error is not None:
                raise refusal(each.error.code, each.error.detail, status=reply.status)

    def _inferred(self, reply: wire.Reply) -> None:
        if reply.status != HTTPStatus.OK:
            wire.parse_prediction(reply, strips=self.items)  # raises what the server refused with
        length = reply.headers.get(LENGTH_HEADER, str(len(reply.body)))
        if not (length.isascii() and length.isdigit() and int(length) <= len(reply.body)):
            raise UnexpectedReply(f"reply: its header {LENGTH_HEADER} does not fit its body")
        head, rest = reply.body[: int(length)], len(reply.body) - int(length)
        described = head[head.rfind(b'"outputs":') :], rest  # receipts differ from reply to reply and stand before
        if described in self._known:
            return
        sizes = [_binary_size(each, self.items) for each in Fields.of_json(head).parts("outputs")]
        if not sizes or sum(sizes) != rest:
            raise UnexpectedReply("reply: its tensors do not fill its body")
        if len(self._known) < _MOST_KNOWN and rest:
            self._known.add(described)


def _binary_size(output: Fields, items: int) -> int:
    """How many bytes of the body are this output's."""
    shape = output.integers("shape")
    if not shape or shape[0] != items:
        raise UnexpectedReply(f"{output.where}.shape: not {items} strips")
    if output.maybe(output.array, "data") is not None:
        return 0
    size = output.part("parameters").integer("binary_data_size")
    if size < 0 or size % math.prod(shape):
        raise UnexpectedReply(f"{output.where}: {size} bytes do not fit its shape")
    return size
