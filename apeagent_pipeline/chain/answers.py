"""Checks of single JSON-RPC answers: numbers, block headers, transactions."""

import re
from typing import Any, NamedTuple

from apeagent_pipeline.chain.events import LogError

_LATEST_TIMESTAMP = 1 << 36
_HASH = re.compile("0x[0-9a-f]{64}")
_ADDRESS = re.compile("0x[0-9a-fA-F]{40}")
_QUANTITY = re.compile("0x[0-9a-fA-F]{1,15}")


class Header(NamedTuple):
    """The fields of a block header that the collector uses."""

    number: int
    timestamp: int
    hash: str


def read_header(block: Any, number: int | None = None) -> Header:
    """The header in an answer to ``eth_getBlockByNumber``.

    Args:
        block: The ``result`` of the answer.
        number: Block that was asked for; None if it was asked for by a tag.

    Raises:
        LogError: if a field is missing or malformed, or another block was answered.
    """
    if not isinstance(block, dict):
        raise LogError(f"the node answered with {type(block).__name__}, expected a block")
    found = read_integer(block.get("number"), "block.number")
    timestamp = read_integer(block.get("timestamp"), "block.timestamp")
    block_hash = str(block.get("hash")).lower()
    if not _HASH.fullmatch(block_hash):
        raise LogError(f"the node answered with block {found} and its hash {block_hash[:80]!r}, expected 32 bytes")
    if timestamp > _LATEST_TIMESTAMP:
        raise LogError(f"the node answered with block {found} and its timestamp {timestamp}, which is no time")
    if number is not None and found != number:
        raise LogError(f"the node answered with block {found} instead of {number}")
    return Header(found, timestamp, block_hash)


def read_transaction(answer: Any) -> tuple[str, str, str, str | None]:
    """Hash, block hash, sender and recipient in an answer to ``eth_getTransactionByHash``, in lower case.

    Raises:
        LogError: if a field is missing or malformed.
    """
    fields = ("hash", "blockHash", "from", "to")
    values: list[Any] = [answer.get(name) for name in fields] if isinstance(answer, dict) else []
    if not values or not all(isinstance(value, str) for value in values[:3]):
        raise LogError("the node answered with a transaction that lacks hash, blockHash or from")
    transaction, block, sender, recipient = values
    for value in (sender, recipient):
        if value is not None and not (isinstance(value, str) and _ADDRESS.fullmatch(value)):
            raise LogError(f"the node answered with a transaction of {str(value)[:80]!r}, expected an address")
    return transaction.lower(), block.lower(), sender.lower(), recipient and recipient.lower()


def read_integer(value: Any, what: str) -> int:
    """The value of a hex quantity; ``what`` names it in the error.

    Raises:
        LogError: if the value is no hex quantity.
    """
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise LogError(f"the node answered {what} with {str(value)[:80]!r}, expected a hex number")
    return int(value, 16)


_QUANTITIES = {
    "eth_getLogs": ("blockNumber", "blockTimestamp", "logIndex", "transactionIndex"),
    "eth_getBlockByNumber": ("number", "timestamp"),
}
_NUMBERS = frozenset({"eth_blockNumber", "eth_chainId"})


def in_usual_dress(method: str, result: Any) -> Any:
    """The result of a call with quantities as hex strings, though some nodes send them as JSON numbers."""
    if method in _NUMBERS:
        return _hex(result)
    names = _QUANTITIES.get(method)
    if names is None:
        return result
    for each in result if isinstance(result, list) else [result]:
        if isinstance(each, dict):
            for name in names:
                if isinstance(each.get(name), int):
                    each[name] = _hex(each[name])
    return result


def _hex(value: Any) -> Any:
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else value
