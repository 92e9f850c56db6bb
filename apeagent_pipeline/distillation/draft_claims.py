"""What drafts claim about a market, a portfolio and a number, compared with what the prompt shows.

A draft is read clause by clause. Only outright claims count: conditions, forecasts and negations are left alone. A
digested prompt says the words for trend and volatility, so a draft must not deny them. A plain prompt shows numbers
alone, so a draft is compared with the numbers, and a word that a careful reader could choose is no contradiction.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apeagent_pipeline.distillation.portfolios import DUST_USDC

_FLAT_UP_TO_BPS = 100.0
"""A move up to this size may be called flat by a reader of numbers."""
_CALM_UP_TO_BPS = 150.0
_WILD_FROM_BPS = 40.0
"""Volatility between the two may be called calm or wild by a reader of numbers."""
_NO_DIRECTION_BPS = 5.0
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Shown:
    """The facts of one prompt, as far as its row holds them.

    Attributes:
        words: Whether the prompt says the words for trend and volatility beside the numbers.
        change: Size and sign of the price change, in basis points and in ticks (about the same).
        eth, usdc: Holdings; ``price`` is in USDC.
        rough_bought: ETH that the USDC buy, worked out in the head (None where the prompt says words).
    """

    words: bool
    trend: str
    volatility_word: str
    portfolio: str
    change: tuple[float, ...]
    volatility_bps: float | None
    price: float
    eth: float
    usdc: float
    affordable_eth: float
    others: tuple[float, ...]
    rough_bought: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Shown":
        """The facts of a row of ``build_prompts``."""
        changes = (row.get("change_bps"), row.get("change_ticks"))
        others = (row.get("volume_usdc"), row.get("span_seconds"), row.get("volume_ratio"))
        return cls(
            row.get("rendering", "digested") == "digested",
            row["trend"],
            row["volatility"],
            row["portfolio"],
            tuple(float(value) for value in changes if value is not None),
            row.get("volatility_bps"),
            row["price"],
            row["eth"],
            row["usdc"],
            row.get("affordable_eth") or row["usdc"] / row["price"],
            tuple(float(value) for value in others if value is not None),
            row.get("rough_bought") if row.get("rendering", "digested") != "digested" else None,
        )

    @property
    def worth_usdc(self) -> float:
        """Worth of the whole portfolio in USDC."""
        return self.eth * self.price + self.usdc

    @property
    def eth_share(self) -> float:
        """Share of the worth that is ETH, 0 to 1."""
        return self.eth * self.price / self.worth_usdc if self.worth_usdc else 0.0


def _words(*stems: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(stems)})\b", re.IGNORECASE)


NOT = re.compile(r"\b(?:not|no|never|without|neither|nor|isn|hardly|barely)\b|n['\u2019]t\b", re.IGNORECASE)
UNCERTAIN = _words(
    "may", "might", "could", "would", "should", "will", "if", "unless", "until", "before", "after", "when",
    "expect\\w*", "likely", "possibl[ey]", "potential\\w*", "maybe", "perhaps", "soon", "later", "next",
    "wait(?:ing)? for", "risk of", "revers\\w+", "revert\\w*", "pull\\s?back", "bounce", "correction", "target",
    "support", "resistance", "below", "above", "versus", "vs", "than", "fear\\w*", "chance", "consider\\w*",
    "watch\\w*", "worth it", "tempt\\w+", "past", "earlier", "previous\\w*", "was", "were", "average", "avg", "mean",
)  # fmt: skip
_CLAUSE = re.compile(r",\s|[;()]|→|⇒|[-=]>|\b(?:but|and|so|then|yet|while|hence|thus)\b", re.IGNORECASE)

_MARKET = _words(
    "trend\\w*", "prices?", "market", "momentum", "moves?", "change[sd]?", "chart", "direction", "eth price",
)  # fmt: skip
_OTHER_TOPIC = _words(
    "vol", "volum\\w*", "volatil\\w*", "swings?", "liquid\\w*", "flows?", "imbalance", "usage", "risk\\w*",
    "exposure", "position", "size", "costs?", "fees?", "slippage", "portfolio", "holdings?", "share", "balance",
    "stake", "pressure", "buyers?", "sellers?", "orders?", "inventory", "allocation",
)  # fmt: skip
_PLAN = _words(
    "buy\\w*", "sell\\w*", "use", "add\\w*", "trim\\w*", "reduc\\w+", "swap\\w*", "keep\\w*", "spend", "hold",
    "scal\\w+", "cut", "size", "slow", "double", "average", "settle", "calm", "lighten", "deploy", "convert",
    "rebalance", "stand", "stay", "back",
)  # fmt: skip
_UP = _words(
    "up", "uptrend\\w*", "upwards?", "rising", "rises?", "rose", "risen", "bull(?:ish)?", "climb\\w*",
    "gain(?:s|ing|ed)?", "rall(?:y|ies|ied|ying)", "surg\\w+", "soar\\w*", "pump\\w*", "jump\\w*", "higher",
    "increas\\w+", "skyrocket\\w*", "positive", "ascending", "advanc\\w+", "grow\\w*", "grew",
)  # fmt: skip
_DOWN = _words(
    "down", "downtrend\\w*", "downwards?", "falling", "falls?", "fell", "fallen", "bear(?:ish)?", "drop\\w*",
    "declin\\w+", "crash\\w*", "plung\\w+", "dump\\w*", "sink\\w*", "sank", "slid\\w*", "lower", "decreas\\w+",
    "tumbl\\w+", "slump\\w*", "collaps\\w+", "plummet\\w*", "negative", "descending", "los(?:ing|t|es)", "dip\\w*",
    "weakening", "retreat\\w*",
)  # fmt: skip
_VIOLENT = _words(
    "crash\\w*", "plung\\w+", "collaps\\w+", "plummet\\w*", "surg\\w+", "soar\\w*", "skyrocket\\w*", "pump\\w*",
    "dump\\w*",
)  # fmt: skip
_FLAT = re.compile(
    r"\b(?:flat|sideways|unchanged|ranging|range-bound|stagnant)\b|"
    r"\bno (?:clear )?(?:trend|direction|move\w*|change)\b",
    re.IGNORECASE,
)
_VOLATILITY = _words(
    "volatil\\w*", "swings?", "choppy", "turbulen\\w+",
)  # fmt: skip
_CALM = _words(
    "calm", "low", "quiet", "small", "little", "tame", "muted", "minimal", "subdued", "mild", "tiny", "stable",
)  # fmt: skip
_WILD = _words(
    "high(?:ly)?", "wild(?:ly)?", "large", "extreme(?:ly)?", "huge", "elevated", "heavy", "massive", "violent\\w*",
    "spik\\w+", "volatile", "choppy", "turbulent", "big", "strong", "intense",
)  # fmt: skip

_TOKEN = {"ETH": r"(?:ETH|ether)", "USDC": r"(?:USDC|dollars|cash|stablecoins?|stables)"}
_ENTIRELY = r"(?:all|only|fully|entirely|100\s?%|purely|just|solely)(?:\s+in)?"
_MOSTLY = r"(?:mostly|mainly|largely|predominantly|overweight|heavy|long|too much|most(?:ly)? in|heavy in)"
_NOTHING = re.compile(
    r"\b(?:no (?:tokens?|funds?|holdings?|assets?|coins?|portfolio|position|balance)|nothing (?:held|owned|to trade)|"
    r"(?:holds?|owns?|has|have) nothing|empty (?:wallet|portfolio)|(?:wallet|portfolio) (?:is )?empty|zero (?:balance|"
    r"holdings?))\b",
    re.IGNORECASE,
)
_EVEN = _words(
    "balanced", "even(?:ly)?(?: split)?", "half (?:and )?half", "50\\s?/\\s?50", "equal(?:ly)?",
)  # fmt: skip

_QUANTITY = re.compile(
    r"(?P<dollar>\$\s?)?(?P<sign>[+\-\u2212]\s?)?(?P<number>\d[\d,]*(?:\.\d+)?|\.\d+)\s*"
    r"(?P<unit>bps?\b|basis points?\b|ticks?\b|%|percent\b|ETH\b|USDC\b|USD\b|dollars\b|x\b|k\b|[a-z]\w*)?",
    re.IGNORECASE,
)
_HELD_BEFORE = r"\b{token}\s*(?:held|holdings?|balance|owned|available|amount|position)?\s*(?:is|are|=|:)?\s*$"
_HOLDS = _words("held", "hold(?:s|ing|ings)?", "have", "has", "own(?:s|ed)?", "balance", "wallet", "available")
_PRICE = _words(
    "price[ds]?", "trades? at", "costs?", "eth at", "spot",
)  # fmt: skip


def clauses_of(draft: str) -> Iterator[str]:
    """The clauses of a draft, such as ``down weak`` and ``reduce`` of ``down weak, reduce``."""
    return filter(None, (clause.strip(" .:!") for clause in _CLAUSE.split(draft)))


def contradiction(drafts: tuple[str, ...], row: Mapping[str, Any]) -> str | None:
    """Which fact of the prompt a draft denies outright.

    Returns:
        ``contradicts_trend``, ``contradicts_volatility``, ``contradicts_portfolio`` or ``invented_number``; None if no
        draft denies a fact.
    """
    shown = Shown.of(row)
    checks = (
        ("contradicts_trend", _denies_trend),
        ("contradicts_volatility", _denies_volatility),
        ("contradicts_portfolio", _denies_portfolio),
        ("invented_number", _invents_number),
    )
    clauses = [clause for draft in drafts for clause in clauses_of(draft)]
    return next((reason for reason, denies in checks for clause in clauses if denies(clause, shown)), None)


def _is_about_trend(clause: str) -> bool:
    if UNCERTAIN.search(clause) or _OTHER_TOPIC.search(clause):
        return False
    return _MARKET.search(clause) is not None or not _PLAN.search(clause)


def _denies_trend(clause: str, shown: Shown) -> bool:
    if not shown.change or not _is_about_trend(clause):
        return False
    change = shown.change[0]
    signed = [found for found in _quantities(clause) if found["sign"] and _unit(found) in ("bps", "ticks", "%")]
    if signed and abs(change) >= 1 and (signed[0]["sign"][0] == "+") != (change > 0):
        return True
    if _FLAT.search(clause):
        return (
            shown.trend.endswith("strong")
            if shown.words
            else abs(change) > max(_FLAT_UP_TO_BPS, shown.volatility_bps or 0.0)
        )
    return _denies_direction(clause, shown, change)


def _denies_direction(clause: str, shown: Shown, change: float) -> bool:
    up, down = bool(_UP.search(clause)), bool(_DOWN.search(clause))
    if up == down or NOT.search(clause):
        return False
    if _VIOLENT.search(clause) and abs(change) < 2 * _NO_DIRECTION_BPS:
        return True
    if shown.words:
        return shown.trend.startswith("down" if up else "up")
    return abs(change) >= _NO_DIRECTION_BPS and up != (change > 0)


def _denies_volatility(clause: str, shown: Shown) -> bool:
    if not _VOLATILITY.search(clause) or NOT.search(clause) or UNCERTAIN.search(clause):
        return False
    calm, wild = bool(_CALM.search(clause)), bool(_WILD.search(clause))
    if calm == wild:
        return False
    if shown.words:
        return shown.volatility_word == ("high" if calm else "calm")
    if shown.volatility_bps is None:
        return False
    return shown.volatility_bps > _CALM_UP_TO_BPS if calm else shown.volatility_bps < _WILD_FROM_BPS


def _denies_portfolio(clause: str, shown: Shown) -> bool:
    if shown.portfolio == "dust" or UNCERTAIN.search(clause):
        return False
    if _NOTHING.search(clause):
        return shown.worth_usdc >= DUST_USDC
    if _PLAN.search(re.sub(r"\bhold(?=\s+(?:no|all|only|mostly|mainly)\b)", "", clause, flags=re.IGNORECASE)):
        return False
    shares = (("ETH", shown.eth_share), ("USDC", 1 - shown.eth_share))
    if any(_denies_share(clause, _TOKEN[name], share) for name, share in shares):
        return True
    return bool(_EVEN.search(clause)) and not NOT.search(clause) and not 0.1 <= shown.eth_share <= 0.9


def _denies_share(clause: str, name: str, share: float) -> bool:
    """Whether a clause denies that a token is this share of the worth; ``name`` is a pattern of the token."""
    if re.search(rf"\b(?:no|zero|0) {name}\b", clause, re.IGNORECASE) and share > 0.02:
        return True
    if NOT.search(clause):
        return False
    if re.search(rf"\b{_ENTIRELY} {name}\b|\b{name}[- ]only\b", clause, re.IGNORECASE) and share < 0.9:
        return True
    return re.search(rf"\b{_MOSTLY} {name}\b|\b{name}[- ]heavy\b", clause, re.IGNORECASE) is not None and share < 0.55


def _invents_number(clause: str, shown: Shown) -> bool:
    """Whether a number that names what it measures is none of the prompt's, nor follows from them."""
    if UNCERTAIN.search(clause):
        return False
    return any(_is_invented(found, clause, shown) for found in _quantities(clause))


def _is_invented(found: re.Match[str], clause: str, shown: Shown) -> bool:
    unit = _unit(found)
    if unit in ("bps", "ticks", "%"):
        return _is_invented_rate(found, clause, shown, 100.0 if unit == "%" else 1.0)
    if unit in ("ETH", "USDC") or found["dollar"]:
        return _is_invented_amount(found, clause, shown)
    return unit is None and _is_invented_bare_number(found, clause, shown)


def _is_invented_rate(found: re.Match[str], clause: str, shown: Shown, scale: float) -> bool:
    changes = [abs(change) for change in shown.change]
    volatility = [] if shown.volatility_bps is None else [shown.volatility_bps]
    if _VOLATILITY.search(clause) and volatility:
        return not _near(found, volatility, scale)
    # A percentage alone may be a share of the portfolio.
    is_a_change = _MARKET.search(clause) or found["sign"] or scale == 1.0
    if changes and is_a_change and _is_about_trend(clause):
        return not _near(found, changes + volatility, scale)
    return False


def _is_invented_bare_number(found: re.Match[str], clause: str, shown: Shown) -> bool:
    value, before, after = number_of(found["number"]), clause[: found.start()], clause[found.end() :]
    if _VOLATILITY.search(before) and value < 1 and shown.volatility_bps is not None:
        return not any(_near(found, [shown.volatility_bps], scale) for scale in (1e4, 100.0))
    if value <= 1:
        return False
    for name, held in (("ETH", [shown.eth, shown.price]), ("USDC", [shown.usdc])):
        if re.search(_HELD_BEFORE.format(token=name), before, re.IGNORECASE):
            return not _near(found, [*held, *_worths(shown, name)])
    is_price = re.search(r"\bprice\s*(?:is|at|of|=|:|~|now)?\s*$", before, re.IGNORECASE)
    return is_price is not None and not after.startswith("/") and not _near(found, [shown.price])


def _is_invented_amount(found: re.Match[str], clause: str, shown: Shown) -> bool:
    """An amount of a token: what is held must be what the prompt says, no other amount more than the whole worth."""
    is_eth = _unit(found) == "ETH"
    if not is_eth and _PRICE.search(clause):
        return not _near(found, [shown.price])
    known = _worths(shown, "ETH" if is_eth else "USDC")
    if _HOLDS.search(clause):
        return not _near(found, known)
    most = max(known if is_eth else [*known, *shown.others, shown.price])
    return number_of(found["number"]) > most * (1 + _TOLERANCE)


def _worths(shown: Shown, name: str) -> list[float]:
    """What a reader may compute from price and holdings, in ETH or USDC."""
    in_usdc = [shown.eth * shown.price, shown.usdc, shown.worth_usdc]
    if name == "USDC":
        return in_usdc
    return [shown.eth, shown.affordable_eth, *(worth / shown.price for worth in in_usdc)]


def _quantities(clause: str) -> Iterator[re.Match[str]]:
    return (found for found in _QUANTITY.finditer(clause) if _unit(found) not in ("x", "k"))


def _unit(found: re.Match[str]) -> str | None:
    unit = (found["unit"] or "").lower()
    if unit.startswith(("bp", "basis")):
        return "bps"
    if unit.startswith("tick"):
        return "ticks"
    known = {
        "%": "%",
        "percent": "%",
        "eth": "ETH",
        "usdc": "USDC",
        "usd": "USDC",
        "dollars": "USDC",
        "x": "x",
        "k": "k",
    }
    return known.get(unit)


def number_of(text: str) -> float:
    """A number as drafts write it, thousands commas included."""
    return float(text.replace(",", "").rstrip(".") or 0)


def _near(found: re.Match[str], known: list[float], scale: float = 1.0) -> bool:
    """Whether a number is one of the known ones, rounded or cut off as printed; 0 is rounded."""
    text = found["number"].replace(",", "")
    unit = 10.0 ** -len(text.partition(".")[2]) * scale
    value = number_of(text) * scale
    below = unit if value else unit / 2
    return any(
        -max(below, _TOLERANCE * each) <= (value - each) / (1 + 1e-9) <= max(unit / 2, _TOLERANCE * each)
        for each in map(abs, known)
    )
