"""The pool that the settings choose, and what only its chain can tell about it.

A pool id is a hash: fee, tick spacing, hooks and the two currencies cannot be read from it. They come from the
settings or from the chain: the PositionManager stores the key of every pool in which it opened a position, and the
PoolManager logged each key in the pool's Initialize event. A key is accepted only if it hashes to the id. Symbols and
decimals are read from the token contracts.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eth_hash.auto import keccak
from pydantic import BaseModel, ConfigDict, ValidationError

from apeagent_pipeline.amm.pool_id import pool_id
from apeagent_pipeline.amm.pool_spec import (
    BASE_ETH_USDC,
    MOST_DECIMALS,
    NATIVE_CURRENCY,
    PoolKey,
    PoolSpec,
    Token,
)
from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind
from apeagent_pipeline.settings import Settings, SettingsError

if TYPE_CHECKING:
    from apeagent_pipeline.chain.endpoint import Endpoint
from apeagent_pipeline.chain.rpc import RpcClient

POSITION_MANAGERS = {8453: "0x7C5f5A4bBd8fD63184577525326123B519429bDc"}
"""Chain id -> Uniswap's PositionManager. A pool without a position opened through it has no key there."""

INITIALIZE_TOPIC = "0xdd466e674ea557f56295e2d0218a125ea4b4f0f6f3307b95f85e6110838d6438"
"""Keccak-256 of ``Initialize(bytes32,address,address,uint24,int24,address,uint160,int24)`` (``IPoolManager.sol``)."""

_KEY_FORM = "currency0,currency1,fee,tickSpacing,hooks"
_UNITS_FORM = "symbol:decimals of currency0, then of currency1, such as ETH:18,USDC:6"
_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}")
_HASH = re.compile(r"0[xX][0-9a-fA-F]{64}")
_UNITS = re.compile(r"([^\s:,]{1,32}):(\d{1,2})")
_TRUNCATED_ID_BYTES = 25
_LONGEST_SYMBOL = 32

_Units = tuple[str, int]


class _Told(BaseModel):
    """The chain's answers, as they are cached: the key, and symbol and decimals of both tokens."""

    model_config = ConfigDict(frozen=True)

    key: PoolKey | None = None
    units: tuple[_Units, _Units] | None = None


@dataclass(frozen=True)
class ChosenPool:
    """A pool as far as the settings describe it.

    Attributes:
        chain_id: EIP-155 id of the chain.
        pool_manager: Address of its PoolManager.
        pool_id: 0x-prefixed lower-case hex.
        key: The pool's key, or None if the settings do not give it.
        units: Symbol and decimals of token0 and of token1, or None if the settings do not give them.
    """

    chain_id: int
    pool_manager: str
    pool_id: str
    key: PoolKey | None
    units: tuple[_Units, _Units] | None

    def from_settings(self) -> PoolSpec:
        """The pool, from the settings alone.

        Raises:
            SettingsError: if the key, or the tokens' symbols and decimals, are missing.
        """
        if self.key is None or self.units is None:
            wanted = [f"APEAGENT_POOL_KEY ({_KEY_FORM})"] if self.key is None else []
            wanted += [f"APEAGENT_POOL_TOKENS ({_UNITS_FORM})"] if self.units is None else []
            raise SettingsError(
                f"APEAGENT_POOL_ID={self.pool_id} on chain {self.chain_id}: files and the embedded chain do not "
                f"describe a pool, so set {' and '.join(wanted)}"
            )
        return self._spec(self.key, self.units)

    def from_chain(self, client: "RpcClient", cache: Path) -> PoolSpec:
        """The pool. Values that the settings lack are read from the chain once and cached.

        Args:
            client: Endpoints of the pool's chain.
            cache: Folder of the chain's answers.

        Raises:
            RpcError: if the chain does not give them either; the message names the setting to use.
        """
        path = cache / f"{self.chain_id}-{self.pool_manager.lower()}-{self.pool_id}.json"
        kept = self._kept(path)
        key, units = self.key or kept.key, self.units or kept.units
        if key is None or units is None:
            key, units = client.ask(lambda endpoint: self._ask(endpoint, key, units))
            # Values from the settings are not cached: the user may still correct them.
            told = _Told(key=None if self.key else key, units=None if self.units else units)
            write_atomically(path, told.model_dump_json(indent=2) + "\n")
        return self._spec(key, units)

    def _spec(self, key: PoolKey, units: tuple[_Units, _Units]) -> PoolSpec:
        (symbol0, decimals0), (symbol1, decimals1) = units
        return PoolSpec(
            chain_id=self.chain_id,
            pool_manager=self.pool_manager,
            pool_id=self.pool_id,
            token0=Token(address=key.currency0, symbol=symbol0, decimals=decimals0),
            token1=Token(address=key.currency1, symbol=symbol1, decimals=decimals1),
            fee=key.fee,
            tick_spacing=key.tick_spacing,
            hooks=key.hooks,
        )

    def _kept(self, path: Path) -> _Told:
        try:
            told = _Told.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return _Told()
        return told if told.key is None or pool_id(told.key) == self.pool_id else _Told()

    def _ask(
        self, endpoint: "Endpoint", key: PoolKey | None, units: tuple[_Units, _Units] | None
    ) -> tuple[PoolKey, tuple[_Units, _Units]]:
        chain_id = endpoint.results([("eth_chainId", [])])[0]
        if chain_id != hex(self.chain_id):
            raise _final(
                f"{endpoint} serves chain {chain_id}, expected {hex(self.chain_id)} ({self.chain_id}); check "
                "APEAGENT_RPC_URLS and APEAGENT_CHAIN_ID"
            )
        if key is None:
            key = self._key_of_position_manager(endpoint) or self._key_of_event(endpoint)
        return key, units or (_units(endpoint, key.currency0), _units(endpoint, key.currency1))

    def _key_of_position_manager(self, endpoint: "Endpoint") -> PoolKey | None:
        address = POSITION_MANAGERS.get(self.chain_id)
        if address is None:
            return None
        truncated = bytes.fromhex(self.pool_id[2:])[:_TRUNCATED_ID_BYTES]
        answer = _view(endpoint, address, "poolKeys(bytes25)", truncated.ljust(32, b"\0"))
        return self._checked(_words(answer))

    def _key_of_event(self, endpoint: "Endpoint") -> PoolKey:
        query = {
            "address": self.pool_manager,
            "topics": [INITIALIZE_TOPIC, self.pool_id],
            "fromBlock": "0x0",
            "toBlock": "latest",
        }
        remedy = f"set APEAGENT_POOL_KEY ({_KEY_FORM})"
        logs = endpoint.send([("eth_getLogs", [query])])[0]
        if isinstance(logs, RpcError):
            if logs.kind in (RpcErrorKind.RANGE, RpcErrorKind.UNKNOWN, RpcErrorKind.FATAL):
                raise _final(
                    f"{logs}; this endpoint does not search the whole chain for the pool's Initialize event: {remedy}"
                )
            raise logs
        if not logs:
            raise _final(
                f"{endpoint} knows no pool {self.pool_id} of the PoolManager {self.pool_manager}; check "
                f"APEAGENT_POOL_ID and APEAGENT_POOL_MANAGER, or {remedy}"
            )
        try:
            log = logs[0]
            words = [int(word, 16) for word in log["topics"][2:]] + _words(bytes.fromhex(log["data"][2:]))
        except (LookupError, TypeError, ValueError):
            words = []
        key = self._checked(words)
        if key is None:
            raise _final(f"{endpoint} answered with an Initialize event that does not fit {self.pool_id}: {remedy}")
        return key

    def _checked(self, words: list[int]) -> PoolKey | None:
        # The PositionManager answers zeros for a pool that it does not know; they do not hash to the id.
        try:
            currency0, currency1, fee, tick_spacing, hooks = words[:5]
            key = PoolKey(
                currency0=_address(currency0),
                currency1=_address(currency1),
                fee=fee,
                tick_spacing=tick_spacing,
                hooks=_address(hooks),
            )
        except ValueError:
            return None
        return key if pool_id(key) == self.pool_id else None


def chosen_pool(settings: Settings) -> ChosenPool:
    """The pool that the settings name, or else the preset, Base ETH-USDC. Sends no request.

    Raises:
        SettingsError: naming the variable, its value and the expected form.
    """
    preset = BASE_ETH_USDC
    on_preset_chain = settings.chain_id == preset.chain_id
    if not settings.pool_manager and not on_preset_chain:
        raise SettingsError(
            f"APEAGENT_CHAIN_ID={settings.chain_id}: set APEAGENT_POOL_MANAGER to the PoolManager of that chain"
        )
    manager = settings.pool_manager or preset.pool_manager
    if not _ADDRESS.fullmatch(manager):
        raise SettingsError(f"APEAGENT_POOL_MANAGER={manager}: expected an address, 0x and 40 hex digits")
    if settings.pool_id and not _HASH.fullmatch(settings.pool_id):
        raise SettingsError(f"APEAGENT_POOL_ID={settings.pool_id}: expected 0x and 64 hex digits")
    key = _given_key(settings.pool_key) if settings.pool_key else None
    if not on_preset_chain and key is None and not settings.pool_id:
        raise SettingsError(
            f"APEAGENT_CHAIN_ID={settings.chain_id}: set APEAGENT_POOL_ID or APEAGENT_POOL_KEY to a pool of that chain"
        )
    chosen_id = settings.pool_id.lower() or (pool_id(key) if key else preset.pool_id)
    if key is None and chosen_id == preset.pool_id:
        key = preset.key
    if key is not None and pool_id(key) != chosen_id:
        raise SettingsError(
            f"APEAGENT_POOL_KEY={settings.pool_key} is the key of the pool {pool_id(key)}, but "
            f"APEAGENT_POOL_ID={settings.pool_id}; correct one of them or unset APEAGENT_POOL_ID"
        )
    units = _given_units(settings.pool_tokens) if settings.pool_tokens else None
    if units is None and on_preset_chain and chosen_id == preset.pool_id:
        token0, token1 = preset.token0, preset.token1
        units = (token0.symbol, token0.decimals), (token1.symbol, token1.decimals)
    is_preset_manager = manager.lower() == preset.pool_manager.lower()
    manager = preset.pool_manager if is_preset_manager else manager.lower()
    return ChosenPool(settings.chain_id, manager, chosen_id, key, units)


def _given_key(text: str) -> PoolKey:
    try:
        currency0, currency1, fee, tick_spacing, hooks = (part.strip() for part in text.split(","))
        return PoolKey(
            currency0=currency0, currency1=currency1, fee=int(fee, 0), tick_spacing=int(tick_spacing), hooks=hooks
        )
    except ValidationError as error:
        first = error.errors()[0]
        what = " ".join(str(part) for part in first["loc"])
        problem = f"{what} {first['input']!r}: {first['msg']}" if what else first["msg"]
    except ValueError as error:
        problem = str(error)
    raise SettingsError(f"APEAGENT_POOL_KEY={text}: {problem}; expected {_KEY_FORM}")


def _given_units(text: str) -> tuple[_Units, _Units]:
    parts = [_UNITS.fullmatch(part.strip()) for part in text.split(",")]
    units = [(part[1], int(part[2])) for part in parts if part and int(part[2]) <= MOST_DECIMALS]
    if len(parts) != 2 or len(units) != 2:
        raise SettingsError(
            f"APEAGENT_POOL_TOKENS={text}: expected {_UNITS_FORM}, with at most {MOST_DECIMALS} decimals"
        )
    return units[0], units[1]


def _units(endpoint: "Endpoint", currency: str) -> _Units:
    if currency == NATIVE_CURRENCY:
        return "ETH", 18
    symbol = _symbol(_view(endpoint, currency, "symbol()"))
    decimals = _words(_view(endpoint, currency, "decimals()"))
    if symbol is None or len(decimals) != 1 or decimals[0] > MOST_DECIMALS:
        raise _final(
            f"the token {currency} tells no usable symbol and decimals to {endpoint}: set APEAGENT_POOL_TOKENS "
            f"({_UNITS_FORM})"
        )
    return symbol, decimals[0]


def _symbol(answer: bytes) -> str | None:
    # ERC-20 has a string here; some early tokens return bytes32.
    from eth_abi import decode
    from eth_abi.exceptions import DecodingError

    try:
        text = answer.rstrip(b"\0").decode() if len(answer) == 32 else str(decode(["string"], answer)[0])
    except (DecodingError, ValueError):
        return None
    text = text.strip()
    return text if 0 < len(text) <= _LONGEST_SYMBOL and text.isprintable() else None


def _view(endpoint: "Endpoint", address: str, signature: str, argument: bytes = b"") -> bytes:
    """The bytes that a view function returns; empty if the address has no contract or the call reverts."""
    data = "0x" + keccak(signature.encode())[:4].hex() + argument.hex()
    answer: Any = endpoint.send([("eth_call", [{"to": address, "data": data}, "latest"])])[0]
    if isinstance(answer, RpcError):
        if answer.kind in (RpcErrorKind.UNKNOWN, RpcErrorKind.FATAL):
            return b""
        raise answer
    try:
        return bytes.fromhex(answer.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise RpcError(f"{endpoint} answered eth_call without a hex string", RpcErrorKind.TRANSIENT) from None


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[start : start + 32], "big") for start in range(0, len(data), 32)]


def _address(word: int) -> str:
    return f"0x{word:040x}"


def _final(message: str) -> RpcError:
    return RpcError(message, RpcErrorKind.FATAL)
