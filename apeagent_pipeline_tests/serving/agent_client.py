"""A client that speaks as the tutorial's two agents do: their kinds of questions, units and ways of reading an answer.

Nothing of their code is here. The stateful agent rounds what it holds, and acts on ``RECOMMENDATION: APE ...``; the
stateless one states a status, and acts on a direction and a percentage of what it holds.
"""

import re
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

SENTENCE = (
    "Given ETH price is $2500.00 with volume of 19.03 and volatility of {volatility}, \n{indent}recent price change of "
    "{ticks} ticks, and I currently hold {eth:.1f} ETH and {usdc:.0f} USDC{rest}"
)
ENDINGS = (
    ", \nwhat trading action should I take on Uniswap?\n\nI have not traded yet.",
    ", \n        what trading action should I take on Uniswap?",
    ".\n\nTRADING HISTORY & PERFORMANCE:\nMy last two trades: sold, +2.3%; bought, -0.1%\nOne of two went well, near "
    "$2490.\n\nWith that in mind, what trading action should I take on Uniswap?",
)
STATUS = (
    "The market:\n- ETH Price: $2500.00\n- Price Change (10 min): {percent:.2f}%\n- Volume: 1.5000 ETH / $3750.00 "
    "USDC\n\nWhat is held:\n- ETH Balance: {eth:.4f} ETH (${worth:.2f})\n- USDC Balance: {usdc:.2f} USDC\n"
    "- Share of ETH: 50.00%\n\nLimits:\n- ETH Available for trading: {free:.6f} ETH (${worth:.2f})\n"
    "- USDC Available for trading: {usdc:.2f} USDC\n- One trade has 0.0001-0.05 ETH\n- Keep 0.0005 ETH for gas\n\n"
    "Answer in this form:\nTRADE: YES/NO\nDIRECTION: ETH_TO_USDC or USDC_TO_ETH\nPERCENTAGE: <1 to 100>\n"
    "REASONING: <why>"
)


@dataclass
class Wallet:
    """What the agent holds, exactly."""

    eth: float
    usdc: float

    def pay(self, side: str, amount: float, price: float) -> bool:
        """Trade with the pool's fee, or return False if that cannot be paid."""
        eth, usdc = (-amount, amount * price * 0.999) if side == "SELL" else (amount, -amount * price * 1.001)
        if amount <= 0 or self.eth + eth < -1e-12 or self.usdc + usdc < -1e-9:
            return False
        self.eth, self.usdc = self.eth + eth, self.usdc + usdc
        return True


class State(NamedTuple):
    """A market state in the agent's units (a tick is a tenth of a percent), and what it holds."""

    price: float
    ticks: float
    volatility: float
    eth: float
    usdc: float


KINDS = ("first", "later", "with history", "status")
STATES = tuple(
    State(2500 + 37.5 * number, ticks, (0.0, 0.1, 0.4, 1.2)[number % 4], eth, usdc)
    for number, (ticks, (eth, usdc)) in enumerate(
        product(
            (-12.3, -5.9, -2.1, -0.3, 0.4, 1.9, 6.2, 15.8), ((2.4963, 5770.49), (6.949, 0.0), (0.0, 899.5), (0.04, 0.4))
        )
    )
)
"""Thirty-two: every trend and volatility, with both tokens, one of them, or next to nothing."""


def question_of(state: State, kind: str) -> str:
    """What the agent asks."""
    if kind == "status":
        return STATUS.format(
            percent=state.ticks / 10, eth=state.eth, worth=state.eth * state.price, usdc=state.usdc,
            free=max(0.0, state.eth - 0.0005),
        ).replace("$2500.00", f"${state.price:.2f}")  # fmt: skip
    return SENTENCE.format(
        volatility=f"{state.volatility:.4f}", indent="        " if kind == "later" else "", ticks=f"{state.ticks:.4f}",
        eth=state.eth, usdc=state.usdc, rest=ENDINGS[KINDS.index(kind)],
    ).replace("$2500.00", f"${state.price:.2f}")  # fmt: skip


def read_decision(text: str, kind: str, state: State) -> tuple[str, float] | None:
    """Side and amount in ETH as the agent reads them, or None where it finds no decision."""
    if kind == "status":
        if re.search(r"TRADE:\s*NO", text):
            return "HOLD", 0.0
        found = re.search(r"TRADE:\s*YES\s+DIRECTION:\s*(ETH_TO_USDC|USDC_TO_ETH)\s+PERCENTAGE:\s*(\d+)", text)
        if not found or not 1 <= int(found[2]) <= 100:
            return None
        share = int(found[2]) / 100
        sells = found[1] == "ETH_TO_USDC"
        return ("SELL", share * state.eth) if sells else ("BUY", share * state.usdc / state.price / 1.001)
    found = re.search(r"RECOMMENDATION:\s+(APE IN|APE OUT|APE NEUTRAL)(?:\s+([\d.]+)\s*ETH)?", text)
    if (
        not found
        or not re.search(r"####\s+(?:APE IN|APE OUT|APE NEUTRAL)", text)
        or (found[1] == "APE NEUTRAL") != (found[2] is None)
    ):
        return None
    return {"APE IN": "BUY", "APE OUT": "SELL", "APE NEUTRAL": "HOLD"}[found[1]], float(found[2] or 0)
