"""The ``pericard`` command: one module per noun.

Rules of this room: stdout is the result, stderr is words; an error is ``pericard: error: …`` and ``hint: …``, exit
status 1 for refused or failed, 2 for usage; no traceback. A verb imports what it needs when it runs, so that
``--help`` is fast.
"""
