"""Whose holdings a question states: only those of the asker may pay for a trade.

Nothing is guessed from names. A statement counts if its words say outright that the holdings are the asker's or the
agent's own ("I hold", "my wallet has", "you own"), or name no owner at all ("Holdings:", "the wallet holds"). What
"my brother holds", "the pool's balance", "Alice has" and "I do not hold" state is none of the asker's.

All functions take the text as ``stated_facts`` prepares it: single blanks and line ends, no apostrophes ("Bob s").
"""

import re
from functools import lru_cache

_FLAGS = re.IGNORECASE | re.ASCII

# The asker's words for a place that holds tokens, and what may stand before them. "w...t": "wallet" with typing errors.
_NOUN = (
    r"(?:wallets?|w[ale]{3,5}t|portfolio|account|balances?|position|inventory|funds|assets|treasury|holdings?|available|"
    r"held|amount|owned|free)"
)
_KIND = (
    rf"(?:{_NOUN}|w?eth|ether|usdc?|dollars?|tokens?|current|total|own|whole|entire|remaining|present|main|hot|cold|crypto|"
    r"trading|trade|spot|uniswap|defi|ethereum|small|little|big|overall|starting|opening|latest|updated|status|state|agent|"
    r"bot)"
)
_KINDS = rf"(?:{_KIND}[\s:]+)*"
_WHEN = r"(?:on\s\w+|in\stotal|at\sthe\smoment|currently|now|still|only|just|today|here|also|both)"
_NEUTRAL = (
    rf"(?:[^\w()]|\b(?:{_KIND}|{_WHEN}|mine|my|me|all|mostly|balanced|dust|base|approx|about|on|in|at|units?|amounts?)"
    r"\b)*"
)
_PLACE = rf"(?:\({_NEUTRAL}\)|{_WHEN})"
_NOW = (
    r"(?:(?!(?:hardly|barely|scarcely|formerly|previously|supposedly)\b)[a-z]*ly|c[a-z]{6,8}y|now|still|only|just|also|"
    r"already|today|here|both|do|have|am|are)"
)

# Where a statement without an owner may begin: a text, a sentence, a line, an item of a list.
_START = r"(?:^|^(?:hi|hello|hey|dear)(?:\s\w+)?,|\n|[.;:!?)](?=\s)|(?:^|\s)[-\u2022\u2013+&/#](?=\s))"
_START_OR_COMMA = rf"(?:{_START}|,|\band(?=\s))"
_MARKET = r"(?:given|at|eth|the|price|market|trend|volatility|with|now|recent|current|currently)\b"

_I_DO = re.compile(rf"\b(?:i|we|you)(?:\s(?:m|re))?\s(?:{_NOW}\s)*$", _FLAGS)
_I_DO_NOT = re.compile(rf"\b(?:i|we|you)\s(?:(?:do|have)\snot|(?:do|have)n\st|(?:do|have)nt)\s(?:{_NOW}\s)*$", _FLAGS)
_BARE_VERB = re.compile(rf"{_START}\s?(?:(?:and|now|currently|still|only)\s)*$", _FLAGS)
_BEHIND_THE_MARKET = re.compile(
    rf"(?:^|\n|[.;:!?]\s){_MARKET}(?:[^.;:!?]|[.](?=\d))*,\s?(?:(?:and|currently|now)\s)*$", _FLAGS
)
_MY = re.compile(rf"\b(?:my|our|your)\s{_KINDS}$", _FLAGS)
_THE = re.compile(rf"\b(?:the|this)\s{_KINDS}$", _FLAGS)
_MY_WALLET = re.compile(
    rf"\b(?:my|our|your)\s{_KINDS}(?:{_NOUN}|agent|bot)\s(?:0x[0-9a-f.]+\s)?(?:{_PLACE}\s)*$", _FLAGS
)
_THE_WALLET = re.compile(
    rf"(?:\b(?:the|this)\s|{_START_OR_COMMA}\s?){_KINDS}(?:{_NOUN}|agent|bot)\s(?:{_PLACE}\s)*$", _FLAGS
)
_NO_OWNER = re.compile(rf"(?:{_START_OR_COMMA}|\d\s|\b(?:the|this)\s)\s?{_KINDS}$", _FLAGS)
_KIND_OF = re.compile(rf"(?:{_START}\s?|\b(?:the|this)\s){_KINDS}$", _FLAGS)
_A_PORTFOLIO = re.compile(
    rf"\b(?:(?:with|given|for|manage|managing|run|running|keep|trade|trading|have|hold)\s(?:a|an)|in|with)\s{_KINDS}$",
    _FLAGS,
)
_I_AM_LEFT = re.compile(r"\b(?:i|we)\s(?:am|m|are|re)\s(?:left|here|sitting|so)\s$", _FLAGS)

_SOMEBODY = (
    r"(?:pools?|liquidity|reserves?|tvl|whales?|brothers?|sisters?|fathers?|mothers?|friends?|wife|husband|uncle|aunt|cousin|"
    r"boss|neighbou?r|clients?|customers?|competitors?|strangers?|somebody|someone|anybody|others?|another|exchange|contract|"
    r"dao|vault|market\smaker|his|her|hers|their|theirs|he|she|they|him|them|goals?|targets?|plans?|example|[a-z]+\ss|users?\s?#?\d+|0x[0-9a-f.]{6,})"
)
_OF_SOMEBODY_BEFORE = re.compile(
    rf"\b{_SOMEBODY}(?:\s(?:status|state|data|info|wallet|of\s\w+))*\s?[:=]?\s?{_KINDS}$", _FLAGS
)
_PERSON = re.compile(
    rf"\b(?:{_SOMEBODY}|guys?|m[ae]n|wom[ae]n|persons?|people|traders?|dude|mates?|colleagues?|team|company|fund|dad|mum|"
    r"mom|sons?|daughters?|bank|club|charity|everyone|everybody|who|whose|bruder|schwester|freund(?:in)?|hermano|"
    r"amigo|fr\u00e8re|ami|fratello|amico|irm\u00e3o|brat)\b",
    _FLAGS,
)
_ME = r"(?:me|i|myself|us|we|you|apeagent|agent)\b"
_OWNER = re.compile(
    rf"\b(?:(?:owner|holder|investor|account\sname|belongs\sto)\b\s?(?:[:=]|is)?\s?(?!{_ME})\w|"
    rf"(?:client|customer|name|user(?!:))\s?[:=]\s?(?!{_ME})\w+\s?(?:[,;\n]|$)|user:\s?(?!{_ME})\w+\s?(?:[;\n]|$)|"
    r"(?:wallet|account|portfolio)\sof\s?[:=]?\s?(?!(?:mine|ours|yours|eth|usdc|tokens|about|around|only|just)\b)[a-z]{2})",
    _FLAGS,
)
_LABEL = re.compile(rf"(?:^|[.;!?,\n])\s?(?P<words>[^.;!?,\n:=]*)[:=]\s?{_KINDS}$", _FLAGS)
_HEADING = re.compile(r"(?:^|[\n.!?])(?P<words>[^\n.!?]*):\n(?:[^\n]*[:=][^\n]*\n)*[^\n]*$", _FLAGS)
_OF_THE_ASKER = re.compile(
    rf"\b(?:{_KIND}|i|my|our|your|what|market|price|data|facts|info|information|context|input|question|prompt|summary|report|"
    r"limits|user|human|hi|hello|correction|update|sorry|no|edit|volatility|volume|change|trend|note|ask)\b|\d",
    _FLAGS,
)
_ASIDE = re.compile(r"\((?P<words>[^()]*)\)")
_NEUTRAL_ASIDE = re.compile(_NEUTRAL, _FLAGS)

_SAID = re.compile(
    r"\b(?!i\s)\w+\s(?:says?|said|claims?|claimed|writes?|wrote|tells?(?:\s\w+)?|told(?:\s\w+)?|boasts?|boasted|shouts?)"
    r"\s?[:,]?\s?(?:that\s)?$",
    _FLAGS,
)
_NOT_NOW = re.compile(r"\b(?:once|when|whenever|until|till|soon|tomorrow|unless|wish)\s$", _FLAGS)
_SOME_DAY = re.compile(
    r"(?:^|[.;!?\n]\s?)(?:when|once|if|until|unless|imagine|in\s(?:a|my)\sdreams?)\b[^.;!?\n,]*$", _FLAGS
)
_FORMERLY = re.compile(
    rf"\b(?:yesterday|last\s(?:night|week|month|year)|formerly|previously)[\s,:]+(?:my|our|the)?\s?{_KINDS}$", _FLAGS
)
_GIVEN_AWAY = re.compile(
    r"\b(?:took|takes|sold|spent|gave|lost|lent|stolen?|gone|missing|hacked|burn(?:ed|t)|sent|owe[sd]?|paid|donated|locked)\b[^.;!?\n]{0,40}$",
    _FLAGS,
)
_EXAMPLE = re.compile(r"\b(?:example|e\.g\.)[^.;!?\n]{0,20}$", _FLAGS)
_OF_SOMEBODY_BEHIND = re.compile(
    rf"\s?(?:(?:by|from|for|to(?!\s(?:my|our)\b))\s(?!(?:me|us|you|trading|trades?|a\strade|sale|now|spend|use|deploy|invest|play|work)\b)\w|of\s(?!(?:mine|ours|yours|my|our)\b)\w|"
    rf"(?:in|on|at)\s(?!(?:my|our|your|total|usdc?|eth)\b)(?:\w+\s)?{_SOMEBODY}\b|(?:next\sdoor|that\si|whose)\b|"
    r",?\s?(?:said|says|writes|wrote|claims|claimed|told)\s(?!i\b)\w|can\s?not\b|"
    r"(?:,?\s?(?:but|and)\s(?:it|they)\s)?(?:are|is)\s(?:(?:\w+\s){1,2}s|his|hers|theirs)\b|"
    r"(?:are|is|were|was|got|have\sbeen)\s(?:all\s|now\s)?(?:stolen|lost|gone|locked|sold|spent|frozen|not|no\slonger)\b)",
    _FLAGS,
)  # fmt: skip
_ASKS_FOR_HIM = re.compile(r"\b(?:answers?|asks?|asked|wants?|knows?|question|waiting|waits)\b", _FLAGS)
_HE_HAS = re.compile(r"\b(?:has|holds|owns|average|typical)\b", _FLAGS)
_I_OR_MY = re.compile(r"\b(?:i|my|we|our|your|the\swallet)\b", _FLAGS)
_ADDRESS = re.compile(
    r"\b(?:hi|hello|hey|dear|yo|gm|good|greetings|evening|morning|time|again|okay?|quick|please|look|screen|notes|protocol|"
    r"beginner|bot|assistant|view|json|csv|table|numbers|figures|stats|details|snapshot|vol|ethusdc?|ethusd|here|see|below|post|put|get|request|decide|api|input)\b",
    _FLAGS,
)
_VERBS = (
    "hold", "holding", "have", "own", "owning", "got", "keep", "keeping", "carry", "carrying", "sit on", "sitting on",
)  # fmt: skip
_REACH = 200
"""Characters before a word that are looked at: hostile questions must not cost the square of their length."""


def is_own(text: str, place: int, word: str, behind: str = "") -> bool:
    """Whether a word for holdings speaks of the asker's.

    Args:
        text: The question.
        place: Where the word begins.
        word: The word itself, such as ``hold``, ``has``, ``balance`` or ``my``.
        behind: What stands between the word and its first amount.
    """
    before, word = text[max(place - _REACH, 0) : place], word.lower()
    if word in ("my", "our"):
        return not _SAID.search(before) and not _FORMERLY.search(before) and not _GIVEN_AWAY.search(before)
    if word in ("has", "holds", "owns"):
        return _is_wallet(text, before, behind)
    if word in _VERBS:
        return _is_own_verb(text, before, word, behind)
    if _MY.search(before) or _FORMERLY.search(before):
        return not _FORMERLY.search(before)
    return _is_own_noun(text, before, behind)


def _is_own_noun(text: str, before: str, behind: str) -> bool:
    if (found := _THE.search(before)) and names_a_person(re.split(r"[.!?;\n]", before[: found.start()])[-1]):
        return False
    return bool(_NO_OWNER.search(before) or _A_PORTFOLIO.search(before)) and _names_no_owner(text, before, behind)


def _is_own_verb(text: str, before: str, word: str, behind: str) -> bool:
    if subject := _I_DO.search(before):
        earlier = before[: subject.start()]
        if _SOME_DAY.search(earlier):
            return False
        return not _SAID.search(earlier) and not _NOT_NOW.search(earlier)
    if _BARE_VERB.search(before) or _BEHIND_THE_MARKET.search(before):
        return _names_no_owner(text, before, behind)
    if word not in ("holding", "own"):
        return False
    # "My holding", "Current holding: ..."
    return bool(_MY.search(before)) or (bool(_KIND_OF.search(before)) and _names_no_owner(text, before, behind))


def is_own_lack(text: str, place: int) -> bool:
    """Whether "I do not" stands before a verb of having, so that "any ETH" behind it means none of the asker's."""
    return _I_DO_NOT.search(text[max(place - _REACH, 0) : place]) is not None


def is_own_pair(text: str, place: int) -> bool:
    """Whether "with 3 ETH and 900 USDC" at a place speaks of the asker, not of "a pool with ..."."""
    before = text[max(place - _REACH, 0) : place]
    starts = _BARE_VERB.search(before) or _BEHIND_THE_MARKET.search(before) or _I_AM_LEFT.search(before)
    return bool(starts or _is_wallet(text, before, "")) and not _EXAMPLE.search(before)


def is_of_somebody(text: str, place: int) -> bool:
    """Whether an owner other than the asker follows, or a loss: "held by Bob", "in the pool", "were sold"."""
    return _OF_SOMEBODY_BEHIND.match(text, place) is not None


def names_a_person(sentence: str) -> bool:
    """Whether a sentence speaks of somebody else, so that bare amounts behind it may be theirs."""
    sentence = re.sub(
        r"\b(?:what|it|that|let|here|there|how|today|now|price|vol|change|eth|market|everything)\ss\b|\bpool\s(?:quotes|is\sat|trades|shows|volatility|rate|price)\b",
        "",
        sentence,
        flags=_FLAGS,
    )
    return bool(_PERSON.search(sentence)) and not _ASKS_FOR_HIM.search(sentence)


def is_block_of_the_asker(before: str) -> bool:
    """Whether a list, table or object behind a text states the asker's holdings: no heading names somebody else."""
    line = re.split(r"[.?!][)\"']?\s", before)[-1]
    line = re.sub(r"\b(?:hi|hello|hey|dear)\s\w{1,20}[,.!]", "hi,", line, flags=_FLAGS)
    lines = [each for each in line.split("\n") if each.strip()]
    label = re.sub(r"[^\w\s:=,]", " ", lines[-1]).strip() if lines else ""
    if names_a_person(label) or (_HE_HAS.search(label) and not _I_OR_MY.search(label)):
        return False
    words = re.findall(r"[^\W\d_]+", label)
    is_address = label.endswith(",") and len(words) > 1
    is_remark = len(words) > 3 and not re.search(rf"\b(?:{_NOUN}|has|have|holds?)\b", label, _FLAGS)
    return not words or is_address or is_remark or bool(_OF_THE_ASKER.search(label) or _ADDRESS.search(label))


@lru_cache(maxsize=1)
def names_an_owner(text: str) -> bool:
    """Whether a text names the owner of what it states, such as "Owner: Bob"."""
    return _OWNER.search(text) is not None


def is_in_own_wallet(text: str, begin: int, behind: str) -> bool:
    """Whether "in my wallet" or "available", behind amounts that begin at a place, speaks of the asker's."""
    before = text[max(begin - _REACH, 0) : begin]
    labels = [found["words"].strip() for found in (_LABEL.search(before), _HEADING.search(before)) if found]
    return "my" in behind.lower() or not any(_OF_SOMEBODY_BEFORE.search(words) for words in [before, *labels])


def _is_wallet(text: str, before: str, behind: str) -> bool:
    return bool(_MY_WALLET.search(before)) or (
        bool(_THE_WALLET.search(before)) and _names_no_owner(text, before, behind)
    )


def _names_no_owner(text: str, before: str, behind: str) -> bool:
    """Whether nobody is named as the owner: before the word, in its label, its heading or behind it, or anywhere."""
    labels = [found["words"] for found in (_LABEL.search(before), _HEADING.search(before)) if found]
    return (
        not _OF_SOMEBODY_BEFORE.search(before)
        and not names_an_owner(text)
        and all(_OF_THE_ASKER.search(words) or not words.strip() for words in labels)
        and not any(_OF_SOMEBODY_BEFORE.search(words.strip()) for words in labels)
        and all(_NEUTRAL_ASIDE.fullmatch(aside["words"]) for aside in _ASIDE.finditer(behind))
    )
