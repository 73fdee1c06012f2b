"""``python -m pericard_client`` is ``pericard-client``."""

from pericard_client.cli import run

if __name__ == "__main__":
    run()
