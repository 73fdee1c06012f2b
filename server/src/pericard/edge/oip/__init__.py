"""The Open Inference Protocol, version 2, as functions of values: what a body means, and what an answer looks like.

Rules of this room: nothing here waits, asks the engine or knows who the caller is. What comes out of a parser was
checked to the last byte against the model's specification, so that no row can harm or enter another one's answer;
what goes in is refused by name, or not at all. Every list, number and text has a limit that is reached before memory is
spent on it. The extensions that are understood stand in :data:`EXTENSIONS`; nothing else of the protocol's family is.
"""

from pericard.edge.oip.metadata import (
    EXTENSIONS,
    live,
    model_configuration,
    model_metadata,
    model_ready,
    server_metadata,
    server_ready,
)
from pericard.edge.oip.plans import Plans
from pericard.edge.oip.repository import index, parse_index, parse_load, parse_unload, statistics
from pericard.edge.oip.request import PRIORITY_LEVELS, Contract, InferRequest, parse
from pericard.edge.oip.response import Parameters, RowAnswer, render

__all__ = [
    "EXTENSIONS",
    "PRIORITY_LEVELS",
    "Contract",
    "InferRequest",
    "Parameters",
    "Plans",
    "RowAnswer",
    "index",
    "live",
    "model_configuration",
    "model_metadata",
    "model_ready",
    "parse",
    "parse_index",
    "parse_load",
    "parse_unload",
    "render",
    "server_metadata",
    "server_ready",
    "statistics",
]
