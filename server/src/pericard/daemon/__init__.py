"""The processes: who starts whom, who holds what, and what happens when one ends.

Rules of this room: it is the only one that knows everything, so it holds as little code as it can. The supervisor
parses nothing from outside, keeps the identity and the log key in locked memory, owns the listening socket, and hands
each child exactly what it needs through inherited descriptors. A child whose supervisor is gone ends at once.
"""
