"""The pipe between edge and engine: frame types, shared memory for rows, and both ends.

Rules of this room: standard library only; no pickle; a frame is a fixed header, a head, and raw bytes, each with a
limit; whoever breaks the rules loses the connection. Rows lie in the edge's region, and frames only say where; answers
travel in frames.
"""

from pericard.pipe.edge_end import Answer, EngineLink, Told
from pericard.pipe.engine_end import EdgeLink, error_frame
from pericard.pipe.frames import Entry, Frame, FrameReader, FrameType, Kind, Meta, Question, encode
from pericard.pipe.region import Slot, create

__all__ = [
    "Answer",
    "EdgeLink",
    "EngineLink",
    "Entry",
    "Frame",
    "FrameReader",
    "FrameType",
    "Kind",
    "Meta",
    "Question",
    "Slot",
    "Told",
    "create",
    "encode",
    "error_frame",
]
