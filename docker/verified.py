# ruff: noqa: INP001  a script of the image, in no package
"""The image's first program: holds the environment against its manifest from outside of it, and becomes the server.

Usage: ``/usr/bin/python3 -I -S verified.py MANIFEST VERIFIER COMMAND [ARGUMENT ...]``. Standard library only. Without a
manifest there is nothing to hold it against, and the server's own setting ``environment.mode`` says what that means;
one that cannot be seen is not absent. Exit status: the verifier's where it found something, otherwise the command's.
"""

import os
import subprocess
import sys
from pathlib import Path


def verified(manifest: str, verifier: str) -> int:
    """The verifier's exit status; 0 where there is no manifest."""
    try:
        os.lstat(manifest)
    except FileNotFoundError:
        return 0
    except OSError as error:
        sys.stderr.write(f"verified: {manifest}: whether it is there cannot be seen: {error.strerror}\n")
        return 2
    return subprocess.run([sys.executable, "-I", "-S", Path(verifier), manifest], check=False).returncode


if __name__ == "__main__":
    status = verified(sys.argv[1], sys.argv[2])
    if status == 0:
        os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606  (no shell is meant)
    sys.exit(status)
