"""Dagster's web server for its own pages, and for programs of this machine; ``dagster dev`` with that server.

Dagster's takes a request from any page that the user's browser has open: a form, a picture or a web socket can carry a
mutation, and a name that its owner lets point to 127.0.0.1 (DNS rebinding) reads the answers too. Run with the
arguments of ``dagster-webserver``, or of ``dagster`` if the first is ``dev``.

The pages also get a few lines of style, because Dagster puts the Markdown of an asset's page on lines without end.
"""

import sys
import warnings
from collections.abc import Sequence
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit

import dagster
import dagster._cli
import dagster._cli.dev
import dagster_webserver.app
import dagster_webserver.cli
from dagster_webserver.webserver import DagsterWebserver
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_NAMES = ["127.0.0.1", "localhost"]
_STYLE = """
td:has(.dagster-markdown) { width: 100% }
td > div > span:has(.dagster-markdown) { flex: 1 1 0; min-width: 0 }
td .dagster-markdown { contain: inline-size; overflow-x: auto }
.dagster-markdown img { max-width: 100% }
td pre { white-space: pre-wrap; overflow-wrap: anywhere }
[class*="MetadataEntriesTable"] td:first-child:not(.dagster-markdown td) { min-width: 10em; overflow-wrap: anywhere }
"""
"""A table of metadata is as wide as its page, whatever is in it. Without these classes, it is as Dagster made it."""


class OwnPagesOnly:
    """Refuses requests from pages of another origin. Only a link from there to a page of ours may be followed."""

    def __init__(self, app: ASGIApp) -> None:
        """Stands before ``app``."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or hand the request on."""
        answer: ASGIApp = self.app
        if scope["type"] in ("http", "websocket") and _is_foreign(scope.get("method", "GET"), Headers(scope=scope)):
            answer = PlainTextResponse("Only pages of this server and programs may ask it.", status_code=403)
        await answer(scope, receive, send)


def _is_foreign(method: str, headers: Headers) -> bool:
    # Browsers name the origin of forms, scripts and web sockets; of a picture or frame they say only whose it is.
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return True
    is_link = method == "GET" and headers.get("sec-fetch-dest") == "document"
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link


class GuardedWebserver(DagsterWebserver):
    """Dagster's web server behind these checks, with this style."""

    def index_html_endpoint(self, request: Request) -> HTMLResponse:
        """The page that holds the whole UI."""
        answer = super().index_html_endpoint(request)
        page = bytes(answer.body).decode().replace("</head>", f"<style>{_STYLE}</style></head>", 1)
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return HTMLResponse(page, headers=headers)

    def build_middleware(self) -> list[Middleware]:
        """The checks come first."""
        checks = [Middleware(TrustedHostMiddleware, allowed_hosts=_NAMES), Middleware(OwnPagesOnly)]
        return [*checks, *super().build_middleware()]


def _serve() -> None:
    dagster_webserver.app.DagsterWebserver = GuardedWebserver  # type: ignore[misc]
    dagster_webserver.cli.main()


def _develop() -> None:
    start = dagster._cli.dev.open_ipc_subprocess

    def start_ours(parts: Sequence[str], **kwargs: Any) -> Popen[Any]:
        ours = "apeagent_pipeline.defs.web_server"
        return start([ours if part == "dagster_webserver" else part for part in parts], **kwargs)

    dagster._cli.dev.open_ipc_subprocess = start_ours
    # Dagster tells whoever calls `dagster dev` to call `dg dev`; the user has called `apeagent ui`.
    warnings.filterwarnings("ignore", "Function `dev_command` is superseded", dagster.SupersessionWarning)
    dagster._cli.main()


if __name__ == "__main__":
    (_develop if sys.argv[1:2] == ["dev"] else _serve)()
