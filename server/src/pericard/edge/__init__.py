"""The edge: the only place that knows HTTP, and the only process that strangers can talk to.

Rules of this room: it holds no model key, no weight and no log key, and cannot import the rooms that do. One function,
:func:`pericard.edge.answer.Answerer.answer`, answers every request whatever entrance it came through. Limits come
before credentials, credentials before the body, the body before its meaning; what is not granted is denied.
"""
