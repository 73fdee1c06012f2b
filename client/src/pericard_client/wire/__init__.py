"""The wire, without any I/O: requests as bytes, replies as checked values.

Rules of this room: it opens nothing and waits for nothing, so that the synchronous and the asynchronous client share
it and every case can be tested from a file. A reply is used whole or not at all: a missing field or a wrong type is an
``UnexpectedReply``, while fields that a newer server adds are passed over. The contract is ``docs/spec/http-api.md``.
"""

from pericard_client.wire.replies import (
    Reply,
    parse_metadata,
    parse_models,
    parse_prediction,
    parse_proof,
    parse_ready,
)
from pericard_client.wire.requests import Request, as_strips, batches, get_request, metadata_path, predict_request

__all__ = [
    "Reply",
    "Request",
    "as_strips",
    "batches",
    "get_request",
    "metadata_path",
    "parse_metadata",
    "parse_models",
    "parse_prediction",
    "parse_proof",
    "parse_ready",
    "predict_request",
]
