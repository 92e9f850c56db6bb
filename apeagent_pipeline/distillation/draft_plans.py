"""What drafts plan, compared with the action, and whether they say anything at all.

The last plan decides, because drafts revise earlier ones. A plan under a condition or a negation is no plan.
"""

import re
from collections.abc import Iterator

from apeagent_pipeline.distillation.canary_words import Side
from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT, DraftAnswer
from apeagent_pipeline.distillation.draft_claims import NOT, UNCERTAIN, Shown, clauses_of, number_of
from apeagent_pipeline.distillation.portfolios import lot_of

_BUY = (
    r"buy(?:ing)?|add(?:ing)?|accumulat(?:e|ing)|acquir(?:e|ing)|purchas(?:e|ing)|scale in|go(?:ing)? long|"
    r"increas(?:e|ing)|rais(?:e|ing)|load up|enter"
)
_SELL = (
    r"sell(?:ing)?|reduc(?:e|ing)|trim(?:ming)?|tak(?:e|ing) profits?|offload(?:ing)?|unload(?:ing)?|lighten|"
    r"scal(?:e|ing) (?:out|down)|cut(?:ting)?|exit(?:ing)?|decreas(?:e|ing)|go(?:ing)? short|de-?risk|liquidate|dump"
)
_SPEND = r"use|using|spend(?:ing)?|deploy(?:ing)?"
_MOVE = r"swap(?:ping)?|convert(?:ing)?|exchang(?:e|ing)|rotat(?:e|ing)|mov(?:e|ing)|shift(?:ing)?"
_HOLD = re.compile(
    r"\b(?:no (?:trade|action|change)s?|do nothing|keep (?:all|position|everything|holdings?|both|as is)|stand aside|"
    r"sit (?:out|tight)|stay (?:put|out|flat|still)|no need to (?:act|trade)|wait and see|not? trad(?:e|ing))\b"
    r"|^(?:so |better |just |then )?(?:hold(?:ing)?|wait(?:ing)?|pause|skip)(?!\s+(?:\d|\$|no\b|only\b|some\b|mostly\b|"
    r"mainly\b|more\b|less\b|much\b|lots?\b|few\b|small\b|little\b|large\b|balanced\b|both\b|equal\w*|ETH\s*[:=]|"
    r"USDC\s*[:=]|for\b(?! now)|until\b))",
    re.IGNORECASE,
)
_VERB = re.compile(rf"\b(?:(?P<buy>{_BUY})|(?P<sell>{_SELL})|(?P<spend>{_SPEND})|(?P<move>{_MOVE}))\b", re.IGNORECASE)
_A_NOUN = re.compile(
    r"^[- ]?(?:pressure|volume|side|flows?|walls?|orders?|signals?|interest|off|imbalance|zone|opportunity|sell|buy|"
    r"ratio|dominat\w+|heavy|led|bias|swaps?)\b|^/",
    re.IGNORECASE,
)
_NO_OBJECT = re.compile(
    r"^\s*(?:the |my |some |our )?(?:risks?|costs?|fees?|slippage|uncertainty|size|sizes|liquidity|volatility|on\b)",
    re.IGNORECASE,
)
_OBJECT = re.compile(r"\b(ETH|USDC)\b", re.IGNORECASE)
_BUYS_OR_SELLS_USDC = re.compile(
    r"^\s*(?:(?:some|more|extra|to|our|the|my|a little)\s+)*(?:\d[\d.,]*\s*)?USDC\b(?!\s+(?:worth|of)\b)", re.IGNORECASE
)
_INTO = re.compile(r"\b(?:in)?to (ETH|USDC)\b|\bfor (ETH|USDC)\b", re.IGNORECASE)
_SUBJECT_TRADES = re.compile(r"\b(?:market|buyers?|sellers?|others|people|whales?|everyone)\b", re.IGNORECASE)

_AMOUNT = re.compile(
    r"(?<![\d.,])(\d[\d,]*(?:\.\d+)?|\.\d+)\s*(?:of (?:the )?\d[\d,.]*\s*)?(ETH|USDC)\b", re.IGNORECASE
)
_PERCENT = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*(?:%|percent\b)", re.IGNORECASE)
_SHARES = {
    "half": 0.5,
    "third": 1 / 3,
    "quarter": 0.25,
    "fifth": 0.2,
    "tenth": 0.1,
    "twentieth": 0.05,
    "hundredth": 0.01,
    "all": 1.0,
    "everything": 1.0,
}
_SHARE = re.compile(rf"\b(?:(?:a|one|the) )?({'|'.join(_SHARES)})\b(?!\s+(?:in|at|the time)\b)", re.IGNORECASE)
_MANY_SHARES = re.compile(r"\b(?:two|three|four|five|\d)[ -](?:thirds|quarters|fifths|tenths)\b|\d\s*/\s*\d")
_SIZE_TOLERANCE = 0.15

_FACT = re.compile(
    r"\d|\b(?:trend\w*|prices?|market|momentum|up\w*|down\w*|flat|sideways|ris\w+|fall\w*|fell|rose|bull\w*|bear\w*|"
    r"volatil\w*|vol|swings?|calm|choppy|turbulent|stable|portfolio|balanced?|eth|usdc|tokens?|cash|holds|holdings?|"
    r"inventory|positions?|exposure|risk\w*|volum\w*|flows?|liquid\w*|imbalance|costs?|fees?|slippage|bps|ticks?|dip\w*|"
    r"rall\w+|crash\w*|drop\w*|gain\w*|loss\w*|signals?|noise|edge|weak\w*|strong\w*|quiet|wild|dust|funds|wallet|worth|"
    r"high\w*|low\w*|moves?|moving|change\w*|reversal|mixed|uncertain\w*|overweight|underweight|diversif\w+|usage|spread|"
    r"pressure|buyers?|sellers?|demand|supply|oversold|overbought|strength|declin\w+|climb\w*|surg\w+|slid\w*|skewed|affordable|allocation|dollars?|stables?)\b",
    re.IGNORECASE,
)
_TALK = re.compile(
    r"\b(?:let'?s (?:think|see|begin|start|analy[sz]e|break|go|work|do)|let me|step by step|thinking process|"
    r"the user|the request|as an ai|here (?:is|are|'s)|final (?:answer|action|decision|output|response)|"
    r"(?:a|one) draft|drafts?(?: a line)?\s*:?$|"
    r"i (?:need|have|want) to (?:think|answer|analy[sz]e|write|summari[sz]e|consider)|"
    r"my (?:answer|response|output)|the answer|output format|language model|separator|response:|"
    r"analy[sz](?:e|ing) (?:the|this)|sure thing|of course|certainly)\b|^(?:okay|ok|sure|alright|hmm+|well|answer|"
    r"action|thinking|reasoning|thoughts?|analysis|solution|output|conclusion|summary)\W*$|\?\s*$",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"^(?:step|draft|line|point)\s*\d+\b|^\d+\s*$", re.IGNORECASE)


def says_nothing(drafts: tuple[str, ...]) -> bool:
    """Whether a draft talks about the task, or none says anything of market, portfolio or cost."""
    if any(_TALK.search(draft) or _is_instruction(draft) for draft in drafts):
        return True
    return bool(drafts) and not any(_FACT.search(_ORDINAL.sub("", draft)) for draft in drafts)


def _is_instruction(draft: str) -> bool:
    """Whether a draft repeats the system prompt."""
    return len(draft.split()) > 2 and draft.casefold().strip(" .:") in SYSTEM_PROMPT.casefold()


def repeats(drafts: tuple[str, ...]) -> bool:
    """Whether one draft stands twice."""
    said = [" ".join(re.findall(r"[\w.+%-]+", draft.casefold())) for draft in drafts]
    return len(set(said)) < len(said)


def contradicts_action(answer: DraftAnswer, shown: Shown) -> str | None:
    """Whether the last plan of the drafts is another action or another size.

    Returns:
        ``contradicts_action``, ``contradicts_size`` or None.
    """
    last = None
    for clause in (clause for draft in answer.drafts for clause in clauses_of(draft)):
        last = next(iter(_plans(clause)), None) or last
    if last is None:
        return None
    side, is_denied, clause = last
    if is_denied:
        return "contradicts_action" if side == answer.side else None
    if side != answer.side:
        return "contradicts_action"
    return "contradicts_size" if answer.amount is not None and _other_size(clause, answer, shown) else None


def _plans(clause: str) -> Iterator[tuple[Side, bool, str]]:
    """The plan of a clause: side, whether it is negated, and the clause from the verb on."""
    if UNCERTAIN.search(clause) or _SUBJECT_TRADES.search(clause) or clause.endswith("?"):
        return
    if found := _HOLD.search(clause):
        yield "HOLD", False, clause[found.start() :]
        return
    verb = _VERB.search(clause)
    if verb is None or _A_NOUN.match(clause[verb.end() :]) or _NO_OBJECT.match(clause[verb.end() :]):
        return
    denied = NOT.search(clause[: verb.start()]) is not None or bool(re.search(r"\bavoid\b", clause, re.IGNORECASE))
    side = _side_of_verb(verb, clause[verb.end() :])
    if side:
        yield side, denied, clause[verb.start() :]


def _side_of_verb(verb: re.Match[str], after: str) -> Side | None:
    found = _OBJECT.search(after)
    thing = found[1].upper() if found else None
    into = _INTO.search(after)
    target = (into[1] or into[2]).upper() if into else None
    if verb["move"]:
        return {"ETH": "BUY", "USDC": "SELL"}.get(target or "")  # type: ignore[return-value]
    if verb["spend"]:
        return {"USDC": "BUY", "ETH": "SELL"}.get(thing or "")  # type: ignore[return-value]
    is_of_usdc = _BUYS_OR_SELLS_USDC.match(after) is not None
    return "BUY" if (verb["buy"] is not None) != is_of_usdc else "SELL"


def _other_size(plan: str, answer: DraftAnswer, shown: Shown) -> bool:
    """Whether a plan names a size, and by no reading the size of the action."""
    assert answer.amount is not None
    eth = answer.amount if answer.asset == "ETH" else answer.amount / shown.price
    sizes: list[float] = []
    for number, token in _AMOUNT.findall(plan):
        sizes.append(number_of(number) / (1 if token.upper() == "ETH" else shown.price))
    if not sizes and not _MANY_SHARES.search(plan):
        shares = [float(percent) / 100 for percent in _PERCENT.findall(plan)]
        shares += [_SHARES[word.lower()] for word in _SHARE.findall(plan)]
        bases = [shown.eth, shown.affordable_eth, shown.usdc / shown.price, shown.worth_usdc / shown.price]
        bases += [shown.rough_bought] if shown.rough_bought else []
        sizes = [share * base for share in shares for base in bases]
        sizes += [lot_of(size) for size in sizes]
    return bool(sizes) and not any(abs(size - eth) <= _SIZE_TOLERANCE * max(size, eth) for size in sizes)
