"""Holdings and the price as people write them in passing: ``bag 1.7 eth + 3100 usdc``, ``px 1874``, ``no usdc``.

A second reading, for what the outright statements of `stated_facts` leave open. An amount is a holding only if every
word before it in its clause is known to be harmless: words for having something, filling words, words of the market.
Any other word ("Bob", "sell", "lost") makes the rest of its sentence nobody's, until a clause says "I" or "my".
"""

import re
from dataclasses import dataclass, field

from apeagent_pipeline.distillation.stated_owner import is_block_of_the_asker, is_of_somebody, names_a_person
from apeagent_pipeline.distillation.stated_records import LOWEST_PRICE
from apeagent_pipeline.distillation.stated_words import (
    ASKED,
    ETH_WORDS,
    FILLER,
    FIRST_PERSON,
    HAS,
    HAVING,
    JOINS,
    MARKET,
    MOVES,
    NOT_THE_PRICE,
    PRICE_WORDS,
    SAYS_SO,
    TAKES_AWAY,
)
from apeagent_pipeline.distillation.written_numbers import NUMBER, readings

_FLAGS = re.IGNORECASE
_ETH = r"(?:w?eth(?:er(?:eum|s)?|s)?\b)"
_USDC = r"(?:usdc?(?:\.e)?\b|u\.s\. dollars?\b|d[o\u00f3]ll?ar(?:e?s)?\b|bucks\b|cash\b|stables?\b|stablecoins?\b)"
_SIGNED = rf"(?<![\w.,])(?:[-+\u2212](?=[\d.]))?{NUMBER}(?![\d%\u2030]|[.,]\d)"
_EACH = (
    rf"(?:\s?/{_ETH}|\s/\s{_ETH}(?=\s?(?:[.,;)\n]|$))|"
    r"\s(?:per|for\s(?:one|1|an?)|an?|each|pro|por|par|za|al)\s?(?:1\s|one\s)?"
    rf"(?:{_ETH}|coin\b|token\b|piece\b|unit\b)|\seach\b|\sapiece\b)"
)
_OF_NOTHING = (
    r"(?:(?:no|zero|any|not\s(?:a\ssingle|any|one)|without(?:\sany)?|kein(?:e|en|erlei)?|null|sin|pas\sd|aucun|sem|"
    r"nessun|nenhum|ning\u00fan|senza|brak|geen|ingen|inga|\u043d\u0435\u0442)\s)"
)

_PURE_UNIT = (
    r"(?:(?:bps?|ticks?|t|pips?|points?|pts?|pct|percent|per\scent|basis\spoints?|x|h|hrs?|hours?|min(?:utes)?|"
    r"days?|d|am|pm|wei|gwei|prozent|percento|por\sciento)\b)"
)
_QUOTED = r"(?=\snow\b|\s?[/,;|]\s?[-+]\d[\d.,]{0,12}\s?(?:ticks?|t|bps?)\b)"
"""Behind a number without a name: "3,982.50 / +112 ticks", "2765 now"."""
_TOKEN = re.compile(
    rf"(?P<percent>(?<![\w.,])[-+\u2212]?\.?\d[\d.,]{{0,20}}\s?[%\u2030])"
    rf"|(?P<none>\b{_OF_NOTHING}(?:(?P<no_eth>{_ETH})|{_USDC}))"
    rf"|(?P<half>\bhalf\s(?:an?|of\san?|one)\s{_ETH}(?:\s?\(\s?{_SIGNED}\s?\))?)"
    rf"|(?P<dollar>\$\s?)?(?P<n>{_SIGNED})(?:[ ]?(?:(?:in|of)[ ])?(?P<unit>(?P<eth>{_ETH})|{_USDC}|\$(?!\s?\d))"
    rf"(?!\s?(?:[=:]|/\s?{_USDC}))(?P<each>{_EACH})?|(?P<each3>{_EACH}|\s(?:px|spot)\b(?!\s?[:=\d$]))|(?P<quoted>{_QUOTED})|\s?(?P<pure>{_PURE_UNIT}))?"
    rf"|\b(?:(?P<first>{_ETH})|{_USDC})(?:[ ]?[:=\u2248]\s?|[ ])(?P<dollar2>\$\s?)?(?P<m>{_SIGNED})"
    rf"(?!\s?{_PURE_UNIT})(?P<in>\s?{_USDC}(?!\s?[:=]?\s?\$?\d))?(?P<each2>{_EACH})?"
    r"|(?P<word>[^\W\d_][\w-]*(?:\.\w+)*|@)|(?P<odd>\w+)|(?P<colon>:(?=\s))|(?P<end>[.!?](?=\s|$)|[\n;])"
    r"|(?P<apart>[,|/()+&\u2013\u2014]|\s-\s)",
    _FLAGS,
)
_PAIR = re.compile(
    rf"\b{_ETH}\s?[/-]?\s?{_USDC}(?!\s?\d[\d.,]*\s?{_ETH})|(?<!\d\s)(?<!\d)\b{_USDC}\s?(?:per|/)\s?{_ETH}", _FLAGS
)

_QUOTES = re.compile(
    r"\b(?:the\s)?(?:pool|market|screen|ticker|uniswap)\s(?:quotes|quoting|trades\sat|is\sat|prints|asks)\b", _FLAGS
)
_OWN = FIRST_PERSON | HAVING


_MORE_THAN_A_NAME = 4
"""So many unknown words before "bag 2 ETH" are a remark of their own, not the name of whose bag it is."""


@dataclass
class Loose:
    """What is stated in passing.

    Attributes:
        eth, usdc: Amounts that are held.
        price: Prices that a word for the price stands beside, every reading of them.
        maybe: Least and greatest reading of each number right behind the word ETH: a holding or the price.
        beside: The same where the number is not the asker's to hold, so that it can only be the price.
        spans: Where the holdings stand.
    """

    eth: list[float] = field(default_factory=list)
    usdc: list[float] = field(default_factory=list)
    price: list[float] = field(default_factory=list)
    maybe: list[tuple[float, float]] = field(default_factory=list)
    beside: list[tuple[float, float]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


def read_loosely(text: str) -> Loose:
    """Read a text as `stated_facts` prepares it; linear in its length."""
    text = _QUOTES.sub(lambda found: "price".ljust(len(found[0])), text)
    text = re.sub(
        r"\b(?:il|la|i|o|a) (?=mi[oea]|meu|minha)", lambda found: "my".ljust(len(found[0])), text, flags=_FLAGS
    )
    text = re.sub(
        r"\b(?:hi|hello|hey|dear) \w{1,20}(?=[,.!])", lambda found: "hi".ljust(len(found[0])), text, flags=_FLAGS
    )
    text = re.sub(r"\bnot sure\b", "unsure  ", text, flags=_FLAGS)
    text = re.sub(r"\bby (?=\d)", "up ", text)
    text = _PAIR.sub(lambda found: "price".ljust(len(found[0])), text)
    reader = _Reader(text)
    reader.begin(0)
    for found in _TOKEN.finditer(text):
        if found["colon"]:
            reader.label(found.start())
        elif found["end"] == ";" and not reader.ends_a_fact():
            reader.part()
        elif found["end"]:
            reader.begin(found.end(), is_line=found["end"] == "\n")
        elif found["apart"] or ((word := found["word"] or found["odd"]) and word.lower() in JOINS):
            reader.part()
        elif word:
            reader.word(word.lower())
        else:
            reader.number(found)
    reader.close()
    return reader.found


class _Reader:
    """Whose the next amount would be, word by word."""

    def __init__(self, text: str) -> None:
        self.text, self.found = text, Loose()
        self.group: list[tuple[str, float | tuple[float, float], tuple[int, int]]] = []
        self.is_ours = self.is_known = True
        self.place = self.unknown = 0
        self.was_market_behind = False
        self.has_number = self.was_move = self.was_colon = self.was_market = False
        self.is_under_another = self.has_own = self.was_apart = False
        self.clause: set[str] = set()
        self.since: list[str] = []
        """Words since the last number of the clause."""

    def begin(self, place: int, *, is_line: bool = False) -> None:
        """Begin a sentence. A heading of somebody else holds for all lines below it."""
        self.close()
        before = self.text[max(place - 200, 0) : place].rstrip(" \n.!?;")
        last = re.split(r"[.!?\n;]", before)[-1].strip()
        if is_line and last and not re.search(r"\d", last):
            end = self.text[max(place - 200, 0) : place].rstrip()[-1:]
            self.is_under_another = end not in ".!?,;" and not is_block_of_the_asker(last)
        self.is_ours = not names_a_person(last)
        self.place, self.unknown, self.has_number, self.was_move = place, 0, False, False
        self.was_market = self.was_market_behind = False
        self.is_known, self.clause, self.since, self.has_own = True, set(), [], False

    def part(self) -> None:
        """Begin a clause."""
        if self.was_market_behind:
            self.close(keeps=False)  # "4 ETH traded, ..."
        self.is_ours = self.is_ours and self.is_known
        self.is_known, self.clause, self.since, self.was_apart = True, set(), [], True

    def ends_a_fact(self) -> bool:
        """Whether a cell is about the market and no name stands before it, so that the next is no more about that."""
        return self.was_market and self.unknown != 1

    def label(self, place: int) -> None:
        """A colon: words in front of it that name nobody ("For the record:") leave the sentence the asker's."""
        self.was_colon = True
        told = self.clause
        if not self.is_known and not self.has_number and not told & (HAVING | TAKES_AWAY | NOT_THE_PRICE | {"me"}):
            self.is_known = self.is_ours and is_block_of_the_asker(self.text[max(self.place, place - 200) : place])
            self.unknown += 0 if self.is_known else 1
            self.clause, self.since = (self.clause, self.since) if not self.is_known else (set(), [])

    def word(self, word: str) -> None:
        """Go on by a word; one that is not known takes the amounts before it away, unless they were said to be ours."""
        is_known = word in _OWN or word in FILLER or word in MARKET or word in ETH_WORDS
        if self.group and not is_known and (word not in ASKED or self.was_apart):
            self.close(keeps=(self.has_own or self.was_apart) and word not in TAKES_AWAY)
        self.was_market_behind |= word in MARKET and word not in FILLER | ASKED and not self.was_apart
        self.is_known = self.is_known and is_known
        self.unknown += not is_known
        self.was_colon = False
        self.clause.add(word)
        self.since.append(word)

    def close(self, *, keeps: bool = True) -> None:
        """End a list of amounts."""
        if self.group:
            keeps = keeps and not self.was_market_behind and not self._is_of_another(self.group[-1][2][1])
            for kind, value, span in (each for each in self.group if keeps or each[1] == 0):
                getattr(self.found, kind).append(value)
                self.found.spans.append(span)
        self.group = []

    def _is_of_another(self, end: int) -> bool:
        """Whether the clause behind a list of amounts, or the next one, says whose they are."""
        behind = re.split(r"[.!?\n;]", self.text[end : end + 60])[0]
        return is_of_somebody(self.text, end) or names_a_person(behind)

    def number(self, found: re.Match[str]) -> None:
        """Decide what a number is: a holding, a price or something else."""
        digits = found["n"] or found["m"] or ""
        values = readings(digits.lstrip("-+\u2212")) if digits else (0.0,)
        is_own = bool(_OWN & self.clause)
        if not self.is_known:
            self.is_ours = False
        elif FIRST_PERSON & self.clause:
            self.is_ours = self.has_own = True
        elif is_own and self.unknown >= _MORE_THAN_A_NAME:
            before = self.text[max(self.place, found.start() - 200) : found.start()]
            self.is_ours = not names_a_person(before)
        kind = self._kind(found, is_own=is_own) if values else None
        self.was_market_behind = False
        if kind == "price" or found["pure"] or found["percent"]:
            self.close()
        if kind == "price":
            is_told = not NOT_THE_PRICE & self.clause
            if is_told and not digits.startswith(("-", "+", "\u2212")):
                self.found.price += [value for value in _price_readings(digits, values) if value >= LOWEST_PRICE]
        elif kind and self.is_ours and not self.is_under_another and not set(self.since) & MARKET:
            self.group.append((kind, _value(kind, digits, values, is_half=found["half"] is not None), found.span()))
        elif kind == "maybe" and (self.is_known or (self.was_colon and not HAS & self.clause)):
            self.found.beside.append((min(values), max(values)))
        elif kind and set(self.since) & MARKET:
            self.is_ours = False  # "It is 3 ETH and 900 USDC", "Volume: 3 ETH, 900 USDC" go on about the same
        self.was_colon = False
        self.since, self.was_apart, self.has_number = [], False, True
        self.was_move = found["pure"] is not None
        self.was_market = kind in (None, "price")

    def _kind(self, found: re.Match[str], *, is_own: bool) -> str | None:
        if found["none"] or found["half"]:
            return "usdc" if found["none"] and not found["no_eth"] else "eth"
        if found["m"]:
            return self._kind_behind(found, is_own=is_own)
        if found["pure"] or found["percent"] or (found["eth"] and found["dollar"]):
            return None
        if found["eth"]:
            return "eth"
        if found["each"] or found["each3"] or self._is_priced(is_own=is_own):
            return "price"
        return self._kind_alone(found, is_own=is_own)

    def _kind_behind(self, found: re.Match[str], *, is_own: bool) -> str:
        """What a number behind the name of a token is."""
        if not found["first"]:
            return "usdc"
        following = re.match(r"\s?(\w+)", self.text[found.end() : found.end() + 12])
        is_moving = following is not None and following[1].lower() in MOVES
        if is_moving or self._is_priced(is_own=is_own) or found["dollar2"] or found["in"] or found["each2"]:
            return "price"
        return "eth" if is_own and self.is_known else "maybe"

    def _kind_alone(self, found: re.Match[str], *, is_own: bool) -> str | None:
        """What an amount of USDC is, or a number without a name."""
        if found["unit"]:
            return "usdc"
        if found["quoted"] is not None and not is_own and not self.group and not self.since:
            return "price"
        return "usdc" if found["dollar"] and (self.group or (is_own and self.is_known)) else None

    def _is_priced(self, *, is_own: bool) -> bool:
        """Whether the words right before a number say that it is the price."""
        if self.was_move and self.since == ["to"]:
            return True  # "dropped 98 ticks to 3,333"
        words = list(self.since)
        while words and words[-1] in SAYS_SO:
            words.pop()
        if not words or (words[-1] not in PRICE_WORDS and (words[-1] not in ETH_WORDS or words == self.since)):
            return False
        return not is_own or words[-1] not in ("at", "@")


def _value(kind: str, digits: str, values: tuple[float, ...], *, is_half: bool) -> float | tuple[float, float]:
    if digits.startswith(("-", "\u2212")):
        return (0.0, 0.0) if kind == "maybe" else 0.0
    if kind == "maybe":
        return min(values), max(values)
    return 0.5 if is_half else values[0] if kind == "usdc" else min(values)


def _price_readings(digits: str, values: tuple[float, ...]) -> tuple[float, ...]:
    """The readings of a price, with that of "5.410" as 5410: no ETH costs 5.41 USDC."""
    if max(values) < LOWEST_PRICE and re.fullmatch(r"\d{1,3}\.\d{3}", digits):
        return (float(digits.replace(".", "")),)
    return values
