"""Endpoints are reached through the proxy that the environment names, as with any other program."""

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from apeagent_pipeline.chain.rpc import MaskedHTTPProvider
from apeagent_pipeline.chain.rpc_errors import RpcError
from apeagent_pipeline_tests.chain.conftest import Node


def chain_id() -> object:
    """Of an endpoint whose host has no address: only a proxy can answer."""
    endpoint = MaskedHTTPProvider(SecretStr("http://rpc.invalid/v2"), "RPC endpoint 1")
    return [endpoint.make_request("eth_chainId", [])["result"] for _ in range(2)]


def test_the_environments_proxy_is_asked_and_not_for_excepted_hosts(
    new_node: Callable[[], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = new_node()
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server.server_port}")
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert chain_id() == ["0x2105", "0x2105"]
    monkeypatch.setenv("NO_PROXY", "localhost,rpc.invalid")
    with pytest.raises(RpcError, match="no answer"):
        chain_id()
    assert proxy.requests == ["eth_chainId", "eth_chainId"]
