"""What a question states as names and values: JSON objects, tables, rows under a header, lists of ``key=value``.

Such a block is read as a whole and cut out of the question: read as a sentence, the end of one entry and the beginning
of the next would look like an amount. A block under the name of somebody else states none of the asker's holdings.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

from apeagent_pipeline.distillation.stated_names import (
    ETH_NAMES,
    USDC_NAMES,
    Kind,
    is_key,
    kind_of,
    misspelt,
    parts_of,
    words,
)
from apeagent_pipeline.distillation.stated_owner import is_block_of_the_asker
from apeagent_pipeline.distillation.written_numbers import NUMBER, readings

_Pair = tuple[tuple[str, ...], str]
_Block = tuple[int, int, list[_Pair], list[str]]
"""Begin, end, names and values, and the words in it that are neither."""

_SIGNED = rf"(?:[-+\u2212])?{NUMBER}(?![\d%]|[.,]\d)"
_ETH = r"(?:w?eth(?:er(?:eum|s)?)?\b)"
_USDC = r"(?:usdc?\b|dollars?\b)"
_VALUE = re.compile(
    rf"\s*[~\u2248]?\s?(?P<dollar>\$\s?)?(?P<n>{_SIGNED})\s?(?:(?P<eth>{_ETH})|(?P<usdc>{_USDC}))?"
    rf"(?P<per>\s?(?:/|per|each|for)\s?(?:1\s|one\s|an\s)?(?:{_ETH})?)?(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_AMOUNT = re.compile(
    rf"(?<![\w.])(?P<n>{_SIGNED})\s?(?:(?P<eth>{_ETH})|(?P<usdc>{_USDC}))(?!\s?(?:/|per\b|each\b))"
    rf"|(?P<none>\bno|\bzero)\s(?:(?P<no_eth>{_ETH})|(?P<no_usdc>{_USDC}))",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"\s*(?:none|zero|nothing|no)\s*", re.IGNORECASE)
TAG = re.compile(r"</?[a-z]{1,10}\d?(?:\s[^<>]{0,100})?/?>", re.IGNORECASE)
LOWEST_PRICE = 50.0
"""A number below it is not taken for the price of ETH unless a sentence says so outright: USDC is younger than that."""

_MOST_OBJECTS = 20
_MOST_COLUMNS = 40
_MOST_ROWS = 40
_MOST_HTML = 20_000
"""A hostile question must not cost the square of its length."""


@dataclass
class Records:
    """What the blocks of a question state.

    Attributes:
        rest: The question without them; what stands in them beside names and values follows as lines.
        price, eth, usdc: Every value that is stated, in all its readings for the price and the least for holdings.
        maybe: Least and greatest reading of each bare ``eth``, which is a holding or the price.
    """

    rest: str
    price: list[float] = field(default_factory=list)
    eth: list[float] = field(default_factory=list)
    usdc: list[float] = field(default_factory=list)
    maybe: list[tuple[float, float]] = field(default_factory=list)


def read_records(question: str, *, has_owner: bool = False) -> Records:
    """Read every block of names and values, and cut it out.

    Args:
        question: The question, with its quotation marks and bars.
        has_owner: Whether somebody is named as the owner of what it states; then no block states a holding.
    """
    records, told_beside = Records(question), []
    for find in (_json_blocks, _html_blocks, _grids, _lists):
        if find is _grids:
            records.rest = TAG.sub("\n", records.rest)
        text, kept, place = records.rest, [], 0
        for begin, end, pairs, others in find(text):
            told = [each for names, value in pairs for each in _stated(names, value)]
            if not told and find is _lists:
                continue
            if has_owner or not is_block_of_the_asker(text[max(begin - 300, 0) : begin]):
                if find is _lists:
                    continue
                told = [each for each in told if each[0] == "price"]
            for kind, number in told:
                getattr(records, kind).append(number)
            kept += [text[place:begin], "\n"]
            place = end
            told_beside += others
        records.rest = "".join([*kept, text[place:]])
    records.rest = "\n".join([records.rest, *told_beside])
    return records


_Told = tuple[str, float | tuple[float, float]]


def _stated(names: Sequence[str], value: str) -> Iterator[_Told]:
    """What a name and its value state: the field of `Records` and the value."""
    kind = kind_of(names)
    if kind == "holdings" or (kind in ("eth", "usdc") and len(_AMOUNT.findall(value)) > 1):
        yield from _amounts(value)
    elif kind and _NOTHING.fullmatch(value) and kind != "price":
        yield kind, 0.0
    elif kind and (found := _VALUE.fullmatch(value)) and not re.match(r"\s?[\w%\u2030]", found["rest"]):
        yield from _one(kind, names, found)


def _one(kind: Kind, names: Sequence[str], found: re.Match[str]) -> Iterator[_Told]:
    is_negative = found["n"][0] in "-\u2212"
    values = readings(found["n"].lstrip("-+\u2212"))
    is_dollars = found["dollar"] is not None or found["usdc"] is not None
    if not values:
        return
    if kind == "price" or (kind == "eth" and (found["per"] or is_dollars)):
        # "eth_balance: $6,000" is what it is worth
        is_worth = kind == "eth" and not {part for name in names for part in parts_of(name)} <= ETH_NAMES
        if not is_negative and not is_worth and not found["eth"]:
            yield from (("price", value) for value in values if value >= LOWEST_PRICE)
    elif kind == "eth":
        is_bare = {part for name in names for part in parts_of(name)} <= ETH_NAMES and not found["eth"]
        if is_bare and not is_negative:
            yield "maybe", (min(values), max(values))
        else:
            yield "eth", 0.0 if is_negative else min(values)
    elif not found["eth"] and not found["per"]:
        yield "usdc", 0.0 if is_negative else values[0]


def _amounts(value: str) -> Iterator[tuple[str, float]]:
    for found in _AMOUNT.finditer(value):
        kind = "eth" if found["eth"] or found["no_eth"] else "usdc"
        values = readings((found["n"] or "0").lstrip("-+\u2212"))
        if values:
            is_nothing = found["none"] or found["n"][0] in "-\u2212"
            yield kind, 0.0 if is_nothing else min(values) if kind == "eth" else values[0]


# JSON

_JSON_BEGIN = re.compile(r"[{\[]\s*[\"'{\[]")


def _json_blocks(text: str) -> Iterator[_Block]:
    decoder, place = json.JSONDecoder(), 0
    for _ in range(_MOST_OBJECTS):
        found = _JSON_BEGIN.search(text, place)
        if not found:
            return
        begin = found.start()
        try:
            value, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            place = begin + 1
            continue
        pairs: list[_Pair] = []
        others: list[str] = []
        _flatten(value, (), pairs, others)
        if pairs:
            yield begin, end, pairs, others
        place = end


def _flatten(value: object, names: tuple[str, ...], pairs: list[_Pair], others: list[str]) -> None:
    """Names and values of all leaves; a token that an object names ("asset": "ETH") is part of its other names."""
    if isinstance(value, dict):
        tokens = tuple(v for v in value.values() if isinstance(v, str) and v.lower() in ETH_NAMES | USDC_NAMES)
        for name, inner in value.items():
            if not isinstance(inner, str) or inner not in tokens:
                _flatten(inner, (*names, *tokens[:1], str(name)), pairs, others)
    elif isinstance(value, list):
        for inner in value:
            _flatten(inner, names, pairs, others)
    elif isinstance(value, str):
        has_digit = any(c.isdigit() for c in value)
        is_value = (has_digit and len(value) <= 60) or _NOTHING.fullmatch(value)
        if is_value and kind_of(names):
            pairs.append((names, value))
        else:
            others.append(f"{names[-1] if names else ''}: {value}.")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        pairs.append((names, repr(value)))


# Tables


class _Rows(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_in_cell = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        self._is_in_cell = tag in ("td", "th")
        if self._is_in_cell and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_in_cell = self._is_in_cell and tag not in ("td", "th", "tr")

    def handle_data(self, data: str) -> None:
        if self._is_in_cell and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def _html_blocks(text: str) -> Iterator[_Block]:
    begin, end = text.lower().find("<t"), text.lower().rfind("</t")
    if begin < 0 or not begin < end < begin + _MOST_HTML:
        return
    end = text.find(">", end) + 1 or len(text)
    parser = _Rows()
    parser.feed(text[begin:end])
    if pairs := list(_pairs_of_grid([row for row in parser.rows if row])):
        yield begin, end, pairs, []


_SEPARATORS = ("|", "\t", ";", ",")
_TAIL = re.compile(rf"({_SIGNED})\s(?=[A-Za-z(])")
"""Words behind the last value of the last row."""
_BEFORE_HEADER = re.compile(r".*[.?!:][)\"']?\s+(?=\S)")
_IS_NUMBER = re.compile(rf"\s*[~\u2248]?\s?\$?\s?{_SIGNED}(?:\s?[^\W\d_/]+|\s?%)?(?:\s\(.*\))?\s*", re.IGNORECASE)


def _grids(text: str) -> Iterator[_Block]:
    """Tables of Markdown and rows under a header, across or down."""
    lines, place, begins = text.split("\n"), 0, []
    for line in lines:
        begins.append(place)
        place += len(line) + 1
    first = 0
    while first < len(lines) - 1:
        for separator in _SEPARATORS:
            if lines[first].count(separator) and (block := _grid_from(lines, first, separator)):
                rows, last, skipped = block
                if pairs := list(_pairs_of_grid(rows)):
                    last_cell = _TAIL.match(lines[last][lines[last].rfind(separator) + 1 :].strip())
                    rest = (
                        [lines[last][lines[last].rfind(separator) + 1 :].strip()[last_cell.end() :]]
                        if last_cell
                        else []
                    )
                    yield begins[first] + skipped, begins[last] + len(lines[last]), pairs, rest
                    first = last
                    break
        first += 1


def _grid_from(lines: list[str], first: int, separator: str) -> tuple[list[list[str]], int, int] | None:
    """The rows of a table that begins in a line, its last line, and how much of the first line stands before it."""
    last = first
    count = lines[first + 1].strip(" \r|").count(separator) if first + 1 < len(lines) else 0
    while (
        last + 1 < min(len(lines), first + _MOST_ROWS)
        and count
        and lines[last + 1].strip(" \r|").count(separator) == count
    ):
        last += 1
    if last == first:
        return None
    below = [_cells(line, separator) for line in lines[first + 1 : last + 1] if not _is_rule(line)]
    if not below or len({len(row) for row in below}) > 1:
        return None
    columns = len(below[0])
    if tail := _TAIL.match(below[-1][-1]) if separator != "|" else None:
        below[-1][-1] = tail[1]
    if not 2 <= columns <= _MOST_COLUMNS:
        return None
    line = lines[first]
    if separator == "|":
        skipped = line.find("|") if line.rstrip().endswith("|") else 0
    else:
        skipped = found.end() if (found := _BEFORE_HEADER.match(line)) else 0
    head = _cells(line[skipped:], separator)
    if len(head) > columns:  # words before the header, such as "Good evening, price, eth"
        for _ in range(len(head) - columns):
            skipped = line.index(separator, skipped) + 1
        head = head[-columns:]
    rows = [head, *below]
    is_table = line[skipped:].startswith("|") or _are_rows(rows)
    return (rows, last, skipped) if len(head) == columns and is_table else None


def _are_rows(rows: list[list[str]]) -> bool:
    """Whether lines with separators are rows of names and numbers, not sentences."""
    head, *below = rows
    names = [row[0] for row in below if not _IS_NUMBER.fullmatch(row[0])]
    numbers = [cell for row in below for cell in row[1:]]
    if any(_IS_NUMBER.fullmatch(cell) for cell in head):
        names.append(head[0])
        numbers += head[1:]
    else:
        names += head
    are_names = all(
        name and len(name) <= 30 and len(name.split()) <= 3 and not re.search(r"\d\s|\s\d|:|^[\d.]+$", name)
        for name in names
    )
    return are_names and any(numbers) and all(not cell or _IS_NUMBER.fullmatch(cell) for cell in numbers)


def _is_rule(line: str) -> bool:
    return "-" in line and not set(line) - set(" \t\r|:+=-")


def _cells(line: str, separator: str) -> list[str]:
    line = line.strip(" \r")
    return [cell.strip(" \r\t\"'`*") for cell in (line.strip("|") if separator == "|" else line).split(separator)]


def _pairs_of_grid(rows: list[list[str]]) -> Iterator[_Pair]:
    """Names and values of a table: under a header, beside a first column, or both."""
    if len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return
    is_number = [[_IS_NUMBER.fullmatch(cell) is not None for cell in row] for row in rows]
    has_header = not any(is_number[0])
    if has_header and any(set(parts_of(cell)) & _OF_A_HISTORY for cell in rows[0]):
        return
    has_names = not any(row[0] for row in is_number[1 if has_header else 0 :])
    for row in rows[1 if has_header else 0 :]:
        for column, cell in enumerate(row):
            if has_names and column == 0:
                continue
            head = rows[0][column] if has_header else ""
            if has_names and len(row) == 2 and has_header and not kind_of([head]):
                # "fact | value": the header names nothing, unless it says whose
                head = "" if not set(parts_of(head)) - _OF_A_COLUMN else head
            yield tuple(name for name in (row[0] if has_names else "", head) if name), cell


_OF_A_COLUMN = words("value values amount number reading now current level figure data") | misspelt(["value"])

_OF_A_HISTORY = words(
    "trade trades date time order orders user owner trader name id side block hash client customer account_id"
)
"""In a header: every row is an event or a person."""

# Lists of names and values

_NAME = r"(?:--?)?[A-Za-z]\w{0,30}(?:[./]\w{1,30}){0,3}"
_UNITS = (
    r"(?:[ ]?(?:%|(?i:bps?|ticks?|t|pct|percent|per[ ]cent|basis[ ]points|x|usdc?/w?eth|usdc?[ ]per[ ]w?eth|"
    r"(?:w?eth|ether|usdc?|dollars?)(?![ ]\$?\d))\b"
    r"(?![ ]?(?:held|balance|free|available)?[ ]?[=:/])))?"
)
_ITEM = re.compile(
    rf"(?<![\w.])(?:(?P<key>{_NAME}(?:[ ]{_NAME}){{0,2}}(?:\s\([A-Za-z]+\))?)[ ]?(?:[=:]|->|\.{{2,}}|-(?=[ ]))"
    rf"|(?P<word>{_NAME}(?:[ ](?i:held|balance|price|bal|free|available|qty|amount|rate|px|spot))?)(?=[ ]))[ ]{{0,12}}"
    rf"(?P<value>\$?[ ]?{_SIGNED}{_UNITS}|(?:none|zero|no)\b(?![ ]\d)|[\d.]+\s?%)",
)
_HAS_TOKEN = re.compile(rf"(?:{_ETH}|{_USDC})$", re.IGNORECASE)
_TOKEN_BEHIND = re.compile(rf"[ ]?(?:{_ETH}|{_USDC})[ ]?/", re.IGNORECASE)
_NUMBER_BEFORE = re.compile(r"[\dkM][ ]?$")
_BETWEEN = re.compile(r"[\s,;|/&\u2022*>-]*")
_FEWEST = 3
"""So many names and values in a row are a list; fewer may be a sentence."""


def _lists(text: str) -> Iterator[_Block]:
    """Lists such as ``px=2431 eth=2 usdc=900`` and ``spot 2431, eth 2, usdc 900``."""
    run: list[re.Match[str]] = []
    tainted = -1
    for found in _ITEM.finditer(text):
        name = found["key"] or found["word"]
        if kind_of((name,)) == "holdings" or ((found["word"] or " " in name) and not is_key(name)):
            # "hold 2 ETH" is the beginning of a list of amounts, "and 900 USDC" is its end, "Carol eth=4" is Carol's
            tainted = found.end() if found["key"] and " " in name else tainted
            continue
        if tainted >= 0 and _BETWEEN.fullmatch(text, tainted, found.start()):
            tainted = found.end()
            continue
        if kind_of((name,)) is None and (_HAS_TOKEN.search(found["value"]) or _TOKEN_BEHIND.match(text, found.end())):
            continue  # "pool: 4 ETH" is the beginning of a list of amounts too
        behind_number = _NUMBER_BEFORE.search(text[max(found.start() - 3, 0) : found.start()]) is not None
        is_first = not run or run[-1].end() < found.start() - 1
        if found["word"] and behind_number and is_first and kind_of((name,)):
            continue  # "2 eth 500 usdc" does not state an eth of 500
        if run and not _BETWEEN.fullmatch(text, run[-1].end(), found.start()):
            yield from _list(run)
            run = []
        run.append(found)
    yield from _list(run)


def _list(run: list[re.Match[str]]) -> Iterator[_Block]:
    if len(run) < _FEWEST:
        return
    pairs: list[_Pair] = [((found["key"] or found["word"],), found["value"]) for found in run]
    yield run[0].start(), run[-1].end(), pairs, []
