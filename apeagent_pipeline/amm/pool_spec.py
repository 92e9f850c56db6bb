"""Which pool we talk about: its chain, contract, tokens and fee."""

from pydantic import BaseModel, ConfigDict, Field

NATIVE_CURRENCY = "0x0000000000000000000000000000000000000000"


class Token(BaseModel):
    """An ERC-20 token or the chain's native currency (address zero)."""

    model_config = ConfigDict(frozen=True)

    address: str
    symbol: str
    decimals: int = Field(ge=0, le=36)


class PoolSpec(BaseModel):
    """A Uniswap V4 pool on one chain.

    ``token0`` is the base (ETH in the preset) and ``token1`` the quote (USDC): prices are token1 per token0.
    """

    model_config = ConfigDict(frozen=True)

    chain_id: int
    pool_manager: str
    pool_id: str
    token0: Token
    token1: Token
    fee: int = Field(description="Hundredths of a basis point (pips): 500 is 0.05 %", ge=0, le=1_000_000)
    tick_spacing: int = Field(ge=1, le=32_767)
    hooks: str = NATIVE_CURRENCY


BASE_ETH_USDC = PoolSpec(
    chain_id=8453,
    pool_manager="0x498581fF718922c3f8e6A244956aF099B2652b2b",
    pool_id="0x96d4b53a38337a5733179751781178a2613306063c511b78cd02684739288c0a",
    token0=Token(address=NATIVE_CURRENCY, symbol="ETH", decimals=18),
    token1=Token(address="0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", symbol="USDC", decimals=6),
    fee=500,
    tick_spacing=10,
)
