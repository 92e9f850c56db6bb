"""Keeps the URL of a node, which usually is a password, out of every text."""

import base64
import logging
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

_SHORTEST_SECRET = 6


def secret_parts(url: str) -> list[str]:
    """Every part of a URL that may be a secret, longest first."""
    split = urlsplit(url)
    parts = {
        url,
        split.netloc,
        split.hostname or "",
        split.username or "",
        split.password or "",
        split.path,
        split.query,
    }
    parts |= set(split.path.split("/")) | {value for _, value in parse_qsl(split.query)}
    # Also as a server sees them, and may echo them: unquoted, and the login as the header holds it.
    parts |= {unquote(part) for part in parts}
    login = f"{unquote(split.username or '')}:{unquote(split.password or '')}"
    parts.add(base64.b64encode(login.encode()).decode() if split.username else "")
    # Longest first, so that a part does not break up the whole; a very short one would mask ordinary words.
    return sorted((part for part in parts if len(part) >= _SHORTEST_SECRET), key=len, reverse=True)


def without(secrets: Sequence[str], text: str) -> str:
    """The text with each secret replaced by asterisks."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class _SecretFilter(logging.Filter):
    """Masks parts of URLs in the records of a logger: urllib3 logs the path of each request on its debug level."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without(self.secrets, record.getMessage()), None
        return True


_filter = _SecretFilter()


def hide_from_logs(secrets: Sequence[str]) -> None:
    """Mask these secrets in the records of the HTTP library."""
    _filter.secrets = sorted({*_filter.secrets, *secrets}, key=len, reverse=True)
    for name in ("urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_filter)
