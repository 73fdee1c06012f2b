"""The pipe between edge and engine: frame types and both ends.

Rules of this room: standard library only; no pickle; a frame is a fixed header, a JSON object, and raw bytes, each
with a limit; whoever breaks the rules loses the connection. The payload travels in the frame; a later transport may put
it elsewhere without changing either end's callers.
"""

from pericard.pipe.edge_end import EngineLink
from pericard.pipe.engine_end import EdgeLink
from pericard.pipe.frames import Frame, FrameReader, FrameType, Meta, encode

__all__ = ["EdgeLink", "EngineLink", "Frame", "FrameReader", "FrameType", "Meta", "encode"]
