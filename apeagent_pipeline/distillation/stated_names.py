"""What the name of a value speaks of: a holding of ETH or USDC, the price of ETH, or something else.

Decided by the parts of the name alone: ``my_eth``, ``ethBalance``, ``wallet.usdc``, ``usdc_per_eth``. A name with any
part that is not known is something else, so nothing is read from ``pool_eth``, ``bob.usdc`` or ``eth_volume``.
"""

import re
from collections.abc import Iterable
from typing import Literal

Kind = Literal["eth", "usdc", "price", "holdings"]


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


def misspelt(right: Iterable[str]) -> frozenset[str]:
    """The words with two neighbouring letters swapped or one dropped, not the first or last; of long words alone.

    "Owing", which "owning" is one letter from, is another word.
    """
    found = set()
    for word in right:
        if len(word) > 4 and word.isascii() and word.isalpha():
            for at in range(1, len(word) - 1):
                found.add(word[:at] + word[at + 1 :])
                found.add(word[:at] + word[at + 1] + word[at] + word[at + 2 :])
    return frozenset(found - {"owing"})


ETH_NAMES = words("eth weth ether ethers ethereum")
USDC_NAMES = words("usdc usd dollars dollar cash stables stable stablecoins")
PRICE_NAMES = words("price prices px spot rate quote quoted mid mark last p prc ethusdc ethusd wethusdc") | misspelt(
    ["price"]
)
HOLDING_NAMES = words(
    "hold holds holding holdings held have own owned owns balance balances bal wallet wallets portfolio position "
    "positions pos account acct available avail free amount amounts amt qty quantity units inventory inv funds "
    "assets asset my mine me bag bags stack stash purse i our we your you agent bot spendable tokens token treasury "
    "pf"
)
MARKET_NAMES = words(
    "vol vola volatility sigma change chg delta move drift trend volume volatilities returns return liquidity usage "
    "imbalance span window ticks tick bps"
)
MARKET_NAMES |= misspelt(MARKET_NAMES)
_OF_MARKET_NAMES = words("realised realized recent traded fraction percent pct per cent bp in of last 24h")

_NEUTRAL = words(
    "the a an of in on at is are now current currently market live today per to for one value values fact facts "
    "data state status info input inputs context and snapshot item field key trading export set let env uniswap v4 "
    "base onchain"
)
_MARKET = words("market prices ticker")
_WHOLE = words("portfolio account wallet holdings position positions assets funds")
_PART = re.compile(r"[^\W\d_]+\d?(?![^\W\d_])|\d+|[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def parts_of(name: str) -> list[str]:
    """The lower-case parts of a name: ``ethBalance`` and ``eth_balance`` have the same two."""
    return [part.lower() for part in _PART.findall(_CAMEL.sub(" ", name).replace("_", " "))]


def kind_of(names: Iterable[str]) -> Kind | None:
    """What a name speaks of, or None for something else.

    Args:
        names: The name and, before it, those that it stands under: ``("wallet", "eth")``.
    """
    names = list(names)
    parts = [part for name in names for part in parts_of(name)]
    told, last = set(parts), set(parts_of(names[-1])) if names else set()
    has_eth, has_usdc = bool(told & ETH_NAMES), bool(told & USDC_NAMES)
    rest = told - ETH_NAMES - USDC_NAMES
    if not parts or rest - PRICE_NAMES - HOLDING_NAMES - _NEUTRAL:
        return None
    is_held = bool(rest & (HOLDING_NAMES - {"spot"}))
    if told & PRICE_NAMES or (has_eth and (has_usdc or told & _MARKET)):
        return None if is_held else "price"
    if "usd" in last and last & _WHOLE:
        return None  # "portfolio_usd" may be the worth of everything
    if has_eth or has_usdc:
        return "eth" if has_eth else "usdc"
    return "holdings" if is_held else None


def is_key(name: str) -> bool:
    """Whether a name in front of a number, without a sign between them, is one of a list and no word of a sentence."""
    parts = set(parts_of(name))
    told = ETH_NAMES | USDC_NAMES | PRICE_NAMES | MARKET_NAMES
    return bool(parts & told) and parts <= told | HOLDING_NAMES | _OF_MARKET_NAMES | _NEUTRAL
