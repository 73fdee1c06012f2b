"""The engine: holds weights, the log key and the scheduler; is handed no network socket.

Rules of this room: one thread computes and writes the audit log, so the order of answers, records and counters is one
order. No answer leaves before its record is durable. What one item does wrong costs that item alone. Nothing here
knows HTTP or who a caller is beyond the name that the edge vouches for.
"""
