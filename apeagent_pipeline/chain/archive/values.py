"""From the ways in which people's tools write a value to one canonical text.

Each function takes a whole column and returns text of the same length. A value that it does not understand is returned
as it is: the caller judges the result against `RULES` and reports the value as it stands in the file.
"""

import re

import polars as pl

from apeagent_pipeline.chain.archive.canonical import is_plain_hex, plain_integers
from apeagent_pipeline.chain.archive.layouts import CHAIN_NAMES

HASH = r"^0x[0-9a-f]{64}$"
ADDRESS = r"^0x[0-9a-f]{40}$"
_HEX_SIZES = {HASH: 66, ADDRESS: 42}
_SIGNED = r"^(0|-?[1-9][0-9]{0,38})$"
_NATURAL = r"^(0|[1-9][0-9]{0,14})$"
RULES: dict[str, tuple[str, str]] = {
    "chain_id": (_NATURAL, "a chain id"),
    "pool_id": (HASH, "a pool id, 64 hex digits"),
    "block_number": (_NATURAL, "a block number"),
    "block_hash": (HASH, "a block hash, 64 hex digits"),
    "transaction_hash": (HASH, "a transaction hash, 64 hex digits"),
    "transaction_index": (_NATURAL, "a transaction index"),
    "log_index": (_NATURAL, "a log index"),
    "sender": (ADDRESS, "an address, 40 hex digits"),
    "amount0": (_SIGNED, "an integer of raw token0 units"),
    "amount1": (_SIGNED, "an integer of raw token1 units"),
    "sqrt_price_x96": (r"^[1-9][0-9]{0,48}$", "a positive integer of at most 160 bits"),
    "liquidity": (r"^(0|[1-9][0-9]{0,38})$", "an integer that is not negative"),
    "tick": (r"^(0|-?[1-9][0-9]{0,5})$", "a tick"),
    "fee": (r"^(0|[1-9][0-9]{0,6})$", "a fee in hundredths of a basis point"),
    "tx_from": (ADDRESS, "an address, 40 hex digits"),
    "tx_to": (ADDRESS, "an address, 40 hex digits"),
}
"""Column -> (pattern of its canonical text, what a reader of the error message should find there)."""

SIGNED_COLUMNS = frozenset({"amount0", "amount1", "tick"})
HEX_COLUMNS = frozenset({"pool_id", "block_hash", "transaction_hash", "sender", "tx_from", "tx_to"})
_ADDRESS_COLUMNS = frozenset({"sender", "tx_from", "tx_to"})
_EXACT_DOUBLE = 1 << 53
_BITS = {"amount0": 127, "amount1": 127, "sqrt_price_x96": 160, "liquidity": 128, "tick": 23, "fee": 24}
_NULL_WORDS = ("", "null", r"\n", "none", "nan", "n/a", "na", "<na>", "nil", "nat", "undefined")
_HINTS = (
    (r"[+-]?\d+([.,]\d+)?[eE][+-]?\d+$", ": the scientific notation has lost digits. {as_text}"),
    (r"[+-]?\d+[.,]\d*[1-9]\d*$", ": raw integer units are needed, not human units, percent or basis points"),
    (
        r"0x[0-9a-fA-F]{40}$",
        ": this is the address of a contract, as Uniswap V3 pools have; V4 pools have an id of 32 bytes",
    ),
    (r"\+\d", ", without a plus sign"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d$", ": the seconds are missing"),
    (r"\d{4}-\d\d-\d\d[T ].*/\w+$", ": write UTC or an offset such as +08:00 instead of the name of a zone"),
    (r"\d{1,2}[/.]\d{1,2}[/.]\d{2,4}", ": day and month cannot be told apart; write the year first"),
)
"""Pattern of a wrong value -> what it tells."""
_PLAIN = r"^(0|-?[1-9][0-9]*)$"
_SPACE = " \t\r\n\u00a0\u202f\u200b\ufeff"


def hint(value: object) -> str:
    """What a value that is refused tells about where it comes from, as a remedy; empty where it tells nothing."""
    text = str(value).strip()
    as_text = (
        "Export the column as text from its source (SQL: CAST(... AS VARCHAR), pandas: dtype=str) and do not save the "
        "file with a spreadsheet"
    )
    if isinstance(value, float):
        return f": a floating-point number loses digits. {as_text}"
    return next((told.format(as_text=as_text) for pattern, told in _HINTS if re.match(pattern, text)), "")


def as_text(column: pl.Series, name: str) -> pl.Series:
    """A column of any type as text.

    Floating-point numbers become text where they are whole and small enough to be exact; others keep the notation of
    a float, which no rule accepts.
    """
    if column.dtype == pl.Binary():
        return _from_binary(column, name)
    if column.dtype.is_float():
        whole = (column == column.round()) & (column.abs() < _EXACT_DOUBLE)
        exact = column.cast(pl.Int64(), strict=False).cast(pl.String())
        return exact.zip_with(whole.fill_null(True), _float_text(column))
    if isinstance(column.dtype, pl.Decimal):
        return column.cast(pl.String()).str.replace(r"\.0+$", "")
    return column.cast(pl.String())


def _float_text(column: pl.Series) -> pl.Series:
    # With an exponent, so that no rule mistakes it for an exact integer.
    return pl.Series(column.name, [None if value is None else f"{value:.17e}" for value in column], dtype=pl.String())


def _from_binary(column: pl.Series, name: str) -> pl.Series:
    sizes = column.bin.size()
    longest = sizes.max()
    if name in HEX_COLUMNS and longest in {20, 32} and sizes.min() == longest:
        return "0x" + column.bin.encode("hex")
    text = _ascii(column)
    if text is not None:
        return text
    return _big_endian(column, name)


def _ascii(column: pl.Series) -> pl.Series | None:
    try:
        text = column.cast(pl.String())
    except pl.exceptions.PolarsError:
        return None
    pattern = r"^[ -~]*$"
    return text if text.str.contains(pattern).all() else None


def _big_endian(column: pl.Series, name: str) -> pl.Series:
    values = column.to_list()
    bits = _BITS.get(name, 63)
    for order in ("big", "little"):
        signed = name in SIGNED_COLUMNS
        numbers = [None if v is None else int.from_bytes(v, order, signed=signed) for v in values]
        if all(number is None or abs(number) < 1 << bits for number in numbers):
            return pl.Series(column.name, [None if n is None else str(n) for n in numbers], dtype=pl.String())
    return "0x" + column.bin.encode("hex")


def all_plain(text: pl.Series, name: str) -> bool:
    """Whether a column is canonical text throughout, missing values aside."""
    pattern = RULES[name][0]
    if pattern in _HEX_SIZES:
        return is_plain_hex(text, _HEX_SIZES[pattern])
    return bool(text.str.contains(pattern).all())


def all_zero(column: pl.Series) -> bool:
    """Whether a column holds zeros, in any notation, and nothing else: "not known"."""
    zero = clean_text(as_text(column, "block_timestamp")).str.contains("^(0|0x0*)?$")
    return bool(zero.fill_null(True).all())


def clean_text(text: pl.Series) -> pl.Series:
    """Without surrounding space, quotes and the marks that keep spreadsheets from rounding; null where a null word."""
    # Most columns need nothing: one pass decides.
    if not text.str.contains(r"""^[\s'"=\u00a0\u202f\u200b\ufeff]|[\s"'\u00a0\u202f\u200b]$""").any():
        cleaned = text
    else:
        cleaned = text.str.strip_chars(_SPACE)
        cleaned = (
            cleaned.str.replace(r'^="(.*)"$', "$1").str.replace(r'^"(.*)"$', "$1").str.replace(r"^'(.*?)'?$", "$1")
        )
    words = cleaned.str.len_bytes() <= 9
    if not (words & cleaned.str.contains(r"^[^\d]*$")).any():
        return cleaned
    null = cleaned.str.to_lowercase().is_in(_NULL_WORDS)
    return cleaned.set(null, None)


def integers(text: pl.Series, name: str) -> pl.Series:
    """Decimal integers from decimals with zeros after the point, thousands marks, leading zeros and hex."""
    plain = text.str.contains(_PLAIN)
    if plain.all():
        return text
    odd = text.filter(~plain.fill_null(True))
    repaired = (
        odd.str.replace("^[\u2212\u2012\u2013\u2014\ufe63\uff0d]", "-")
        .str.replace(r"^(-?\d+)\.0*$", "$1")
        .str.replace(r"^(-?)0+(\d)", "$1$2")
    )
    grouped = repaired.str.contains("^-?[1-9]\\d{0,2}([,_'\u00a0\u202f ]\\d{3})+(\\.0*)?$")
    grouped |= repaired.str.contains(r"^-?[1-9]\d{0,2}(\.\d{3}){2,}$")
    digits = repaired.str.replace(r",(\d{3})\.0*$", "$1").str.replace_all("[^0-9-]", "")
    repaired = digits.zip_with(grouped.fill_null(False), repaired)
    hexadecimal = repaired.str.contains(r"^-?0[xX][0-9a-fA-F]*$").fill_null(False)
    if hexadecimal.any():
        repaired = repaired.scatter(hexadecimal.arg_true(), _from_hex(repaired.filter(hexadecimal), name))
    return text.clone().scatter((~plain.fill_null(True)).arg_true(), repaired)


def _from_hex(text: pl.Series, name: str) -> pl.Series:
    def number(value: str) -> str:
        negative, digits = value.startswith("-"), value.lower().removeprefix("-")[2:]
        size = int(digits or "0", 16)
        if name in SIGNED_COLUMNS and len(digits) == 64 and size >> 255:
            size -= 1 << 256
        elif name in SIGNED_COLUMNS and len(digits) == 32 and size >> 127:
            return value  # Two's complement of 128 bits, or a positive number: nobody can tell.
        return str(-size if negative else size)

    return pl.Series(text.name, [number(value) for value in text], dtype=pl.String())


def hex_values(text: pl.Series, name: str) -> pl.Series:
    """``0x`` and lower case, from Postgres, Python, base64 and prefixed notations and from padded addresses."""
    pattern = ADDRESS if name in _ADDRESS_COLUMNS else HASH
    lower = text.str.to_lowercase()
    plain = lower.str.contains(pattern)
    if plain.all():
        return lower
    bare = lower.str.contains(r"^[0-9a-f]{40}$|^[0-9a-f]{64}$")
    lower = ("0x" + lower).zip_with(bare.fill_null(False), lower)
    plain = lower.str.contains(pattern)
    if plain.all():
        return lower
    odd = text.filter(~plain.fill_null(True))
    inner = odd.str.to_lowercase().str.extract(
        r"(?:^|[\\'\"(_:])(?:0x|x|\\x)([0-9a-f]{64}|[0-9a-f]{40})(?:['\")]*)$", 1
    )
    inner = inner.fill_null(_python_bytes(odd)).fill_null(_base64(odd))
    if name in _ADDRESS_COLUMNS:
        inner = inner.str.replace(r"^0{24}([0-9a-f]{40})$", "$1")
    repaired = ("0x" + inner).fill_null(odd)
    return lower.scatter((~plain.fill_null(True)).arg_true(), repaired)


def _python_bytes(text: pl.Series) -> pl.Series:
    import ast

    def decode(value: str | None) -> str | None:
        if value is None or not value.startswith(("b'", 'b"')) or len(value) > 200:
            return None
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return None
        return found.hex() if isinstance(found, bytes) and len(found) in {20, 32} else None

    return pl.Series(text.name, [decode(value) for value in text], dtype=pl.String())


def _base64(text: pl.Series) -> pl.Series:
    shaped = text.str.contains(r"^[A-Za-z0-9+/]{43}=$|^[A-Za-z0-9+/]{27}=$").fill_null(False)
    whole = pl.Series(text.name, [None] * len(text), dtype=pl.String())
    if not shaped.any():
        return whole
    decoded = text.filter(shaped).str.decode("base64", strict=False).bin.encode("hex")
    return whole.scatter(shaped.arg_true(), decoded)


def chain_ids(text: pl.Series) -> pl.Series:
    """Numbers from numbers and from the names of chains."""
    numbers = integers(text, "chain_id")
    names = (
        numbers.str.to_lowercase()
        .str.replace_all(r"[^a-z]|mainnet$", "")
        .replace_strict(CHAIN_NAMES, default=None, return_dtype=pl.Int64())
    )
    return numbers.zip_with(names.is_null(), names.cast(pl.String()))


_TIME = (
    r"^(\d{4}[-/]\d\d[-/]\d\d)[T ]+(\d\d:\d\d:\d\d)(?:[.,](\d+))?\s*"
    r"(?:(?:[zZ]|UTC|GMT)|([+-]\d\d):?(\d\d)?(?:\s*(?:UTC|GMT|\+00:?00))?)?$"
)
_SECONDS_FROM, _SECONDS_TO = 10**8, 10**10
_SECONDS = r"^[1-9]\d{8,9}$"
_NAIVE = r"^\d{4}[-/]\d\d[-/]\d\d[T ]+\d\d:\d\d:\d\d(?:[.,]\d+)?$"


def times(column: pl.Series) -> tuple[pl.Series, bool]:
    """Moments in whole seconds since 1970 (Int64; null where not understood), and whether some had no zone.

    Integers are seconds, milliseconds, microseconds or nanoseconds by their size. A time without a zone counts as UTC.
    """
    if isinstance(column.dtype, pl.Datetime):
        microseconds = column.dt.epoch("us")
        seconds = microseconds // 1_000_000
        return seconds.set(microseconds % 1_000_000 != 0, None), column.dtype.time_zone is None
    if column.dtype.is_float():
        column = column.round(6).cast(pl.Decimal(30, 6)).cast(pl.String())
    text = as_text(column, "block_timestamp")
    numbers = plain_integers(text, pl.Int64)
    if numbers is not None and bool(numbers.is_between(_SECONDS_FROM, _SECONDS_TO - 1).all()):
        return numbers, False
    text = clean_text(text)
    if text.str.contains(_SECONDS).all():
        return text.cast(pl.Int64()), False
    text = text.str.replace(r"^(\d{9,20})\.0*$", "$1")
    hexadecimal = text.str.contains(r"^0[xX][0-9a-fA-F]{8,9}$").fill_null(False)
    if hexadecimal.any():
        seconds_text = text.filter(hexadecimal).str.slice(2).str.to_integer(base=16).cast(pl.String())
        text = text.scatter(hexadecimal.arg_true(), seconds_text)
    return _from_integers(text).fill_null(_from_iso(text)), bool(text.str.contains(_NAIVE).any())


def _from_integers(text: pl.Series) -> pl.Series:
    number = text.str.extract(r"^([1-9]\d{8,18})$", 1).cast(pl.Int64(), strict=False)
    scale = (
        pl.when(number < 10**11)
        .then(1)
        .when(number < 10**14)
        .then(10**3)
        .when(number < 10**17)
        .then(10**6)
        .otherwise(10**9)
    )
    frame = pl.select(number.alias("n"), scale.alias("scale"))
    return frame.select(pl.when(pl.col("n") % pl.col("scale") == 0).then(pl.col("n") // pl.col("scale")))["n"]


def _from_iso(text: pl.Series) -> pl.Series:
    parts = text.str.extract_groups(_TIME).struct.unnest()
    parts.columns = ["day", "clock", "fraction", "hours", "minutes"]
    moment = (
        (pl.col("day").str.replace_all("/", "-") + " " + pl.col("clock"))
        .str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False)
        .dt.epoch("s")
    )
    sign = pl.when(pl.col("hours").str.starts_with("-")).then(-1).otherwise(1)
    hours = pl.col("hours").cast(pl.Int64(), strict=False).fill_null(0)
    offset = hours * 3600 + sign * pl.col("minutes").cast(pl.Int64(), strict=False).fill_null(0) * 60
    whole = pl.col("fraction").is_null() | pl.col("fraction").str.contains("^0+$")
    return parts.select(pl.when(whole).then(moment - offset).alias("time"))["time"]


def flags(column: pl.Series) -> pl.Series:
    """Booleans from booleans and from the words for true; null and anything else is false."""
    if column.dtype == pl.Boolean():
        return column.fill_null(False)
    return clean_text(as_text(column, "removed")).str.to_lowercase().is_in(["true", "t", "1", "yes"]).fill_null(False)
