"""The identity of a pool: its chain, contract, tokens and fee."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from apeagent_pipeline.errors import ApeagentError

NATIVE_CURRENCY = "0x0000000000000000000000000000000000000000"

DYNAMIC_FEE = 0x800000
"""The fee in the key of a pool whose hooks set the fee of each swap (``LPFeeLibrary.sol``)."""

MOST_DECIMALS = 36

_LARGEST_FEE = 1_000_000


class DynamicFeeError(ApeagentError, ValueError):
    """A static fee was requested of a pool in which every swap has its own fee."""


def _check_fee(fee: int) -> int:
    if fee > _LARGEST_FEE and fee != DYNAMIC_FEE:
        raise ValueError(f"a fee is at most {_LARGEST_FEE} (100 %), or {DYNAMIC_FEE} for a dynamic one")
    return fee


Address = Annotated[str, Field(pattern=r"^0[xX][0-9a-fA-F]{40}$")]
Fee = Annotated[int, Field(ge=0), AfterValidator(_check_fee)]
TickSpacing = Annotated[int, Field(ge=1, le=32_767)]


class Token(BaseModel):
    """An ERC-20 token or the chain's native currency (address zero)."""

    model_config = ConfigDict(frozen=True)

    address: str
    symbol: str
    decimals: int = Field(ge=0, le=MOST_DECIMALS)


class PoolKey(BaseModel):
    """The key that identifies a pool within its PoolManager, in Uniswap's terms (``PoolKey.sol``)."""

    model_config = ConfigDict(frozen=True)

    currency0: Address
    currency1: Address
    fee: Fee
    tick_spacing: TickSpacing
    hooks: Address

    @model_validator(mode="after")
    def _currencies_in_order(self) -> Self:
        if int(self.currency0, 16) >= int(self.currency1, 16):
            raise ValueError("currency0 must be the lower of the two addresses, as in the contract")
        return self


class PoolSpec(BaseModel):
    """A Uniswap V4 pool on one chain.

    ``token0`` is the base (ETH in the preset) and ``token1`` the quote (USDC): prices are token1 per token0. Columns
    and words named after the preset (``amount0_eth``, ``amount1_usdc``, ETH, USDC) mean token0 and token1 of any other
    pool, in human units. Portfolios and prompts assume a quote token worth about one dollar.
    """

    model_config = ConfigDict(frozen=True)

    chain_id: int
    pool_manager: str
    pool_id: str
    token0: Token
    token1: Token
    fee: Fee = Field(description="Hundredths of a basis point (pips): 500 is 0.05 %; or DYNAMIC_FEE")
    tick_spacing: TickSpacing
    hooks: str = NATIVE_CURRENCY

    @property
    def key(self) -> PoolKey:
        """The key whose hash is the pool id."""
        return PoolKey(
            currency0=self.token0.address,
            currency1=self.token1.address,
            fee=self.fee,
            tick_spacing=self.tick_spacing,
            hooks=self.hooks,
        )

    @property
    def has_hooks(self) -> bool:
        """Whether a contract is called around swaps. Its effects appear in events, but not in simulated swaps."""
        return int(self.hooks, 16) != 0

    @property
    def has_dynamic_fee(self) -> bool:
        """Whether each swap has its own fee, given in its event."""
        return self.fee == DYNAMIC_FEE

    @property
    def static_fee(self) -> int:
        """The fee of all swaps, in pips.

        Raises:
            DynamicFeeError: if the pool has a dynamic fee.
        """
        if self.has_dynamic_fee:
            raise DynamicFeeError(
                f"the pool {self.pool_id} has a dynamic fee: its swaps and their features can be read, but windows, "
                "synthetic swaps and the backtest compute with one fee. Choose a pool with a static fee for them"
            )
        return self.fee


BASE_ETH_USDC = PoolSpec(
    chain_id=8453,
    pool_manager="0x498581fF718922c3f8e6A244956aF099B2652b2b",
    pool_id="0x96d4b53a38337a5733179751781178a2613306063c511b78cd02684739288c0a",
    token0=Token(address=NATIVE_CURRENCY, symbol="ETH", decimals=18),
    token1=Token(address="0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", symbol="USDC", decimals=6),
    fee=500,
    tick_spacing=10,
)
