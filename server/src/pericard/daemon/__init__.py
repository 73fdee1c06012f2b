"""The processes: who starts whom, who holds what, and what happens when one ends.

Rules of this room: it is the only one that knows everything, so it holds as little code as it can. The supervisor
parses nothing from outside, keeps the identities and the log key in locked memory, owns the listening socket, and
hands each child exactly what it needs through inherited descriptors. What unlocks an identity from anywhere but a plain
file is a process of its own that is gone before anything is served. A child whose supervisor is gone ends at once.
"""
