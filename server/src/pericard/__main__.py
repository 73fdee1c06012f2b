"""``python -m pericard`` is the ``pericard`` command."""

from pericard.cli.main import run

if __name__ == "__main__":
    run()
