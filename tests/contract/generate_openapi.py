"""Write ``docs/spec/http-api.openapi.json`` anew from the application."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pericard import __version__
from pericard.auth import Authority, TokenFile
from pericard.edge.answer import Answerer
from pericard.edge.app import create_app, openapi
from pericard.edge.limits import Limits
from pericard.pipe import EngineLink

TARGET = Path(__file__).resolve().parents[2] / "docs/spec/http-api.openapi.json"


def document() -> str:
    """The OpenAPI document: sorted, with a newline at its end."""
    nobody = Authority(TokenFile(Path("tokens.json")))  # no request comes, so it is never read
    app = create_app(Answerer(EngineLink(), nobody, Limits(), version=__version__), version=__version__)
    return json.dumps(openapi(app), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
    sys.stderr.write(f"wrote {TARGET}\n")
