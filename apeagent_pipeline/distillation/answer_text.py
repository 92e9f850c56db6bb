"""What models print around an answer: thinking, control tokens, fences and list marks.

Thinking is dropped. Fences and marks that mean nothing are removed. Control tokens, tags and hidden characters are
found, because an answer that holds one must never reach a training file.
"""

import re
import unicodedata

from apeagent_pipeline.distillation.canary_words import SEPARATOR

_THOUGHT = r"(?:[a-z]{1,9}:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis)"
_THINKING_BEGINS = re.compile(rf"<{_THOUGHT}>|\[THINK(?:ING)?\]|◁think▷", re.IGNORECASE)
_THINKING_ENDS = re.compile(rf"</{_THOUGHT}>|\[/THINK(?:ING)?\]|◁/think▷", re.IGNORECASE)
_THINKING_CUT = re.compile(rf"<{_THOUGHT}|\[THINK(?:ING)?\]|◁think", re.IGNORECASE)
_BROKEN_TAG = re.compile(rf"^[ \t]*/?{_THOUGHT}[ \t]*>", re.IGNORECASE | re.MULTILINE)

# In the order of the alternatives: ChatML and its kin, DeepSeek's, Llama 2's, Kimi's.
CONTROL_TOKEN = re.compile(
    r"<\s*[|｜]|[|｜]\s*>|\[/?\s*(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|IMG)\b[^\]]*\]|<</?SYS>>"  # noqa: RUF001
    r"|◁(?!/?think▷)[^▷\n]*▷",
    re.IGNORECASE,
)
_TAG = re.compile(r"<\s*/?\s*[A-Za-z_][\w.:-]*(?:\s+[\w:-]+\s*=[^<>]*)?\s*/?\s*>")
# gpt-oss without its control tokens: "analysisThe user asks...assistantfinaltrend up".
_CHANNEL = re.compile(
    r"assistant\s?(?:final|analysis|commentary)|^[ \t]*(?:analysis|commentary|final)(?=[A-Z])"
    r"|^[ \t]*(?:assistant|user|system|human)\s*(?::|$)",
    re.MULTILINE,
)
_LATEX = re.compile(r"\\[A-Za-z]+|\\[()\[\]]")
_FENCE = re.compile(r"^[ \t]*(?:```+|~~~+)[ \t]*[\w+-]*[ \t]*$", re.MULTILINE)
_WIDE_SPACES = re.compile(r"[\u00a0\u2007\u202f\u2009]")
SIGNS = "✅✔☑👉➡▶📈📉🟢🔴"
"""Pictures that stand before a line and say no more than the line does; a cross is none of them."""

_LIST_MARK = re.compile(rf"^(?:[{SIGNS}]\ufe0f?|[-*•·]|→|>(?!\s*\d)|\(?\d{{1,2}}[.)]|#{{1,3}})\s+(?:\[[ xX]\]\s+)?")
_RULE = re.compile(r"[-*_=`•\s]*")
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.\s+(?=\S)")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|vs|approx|avg|vol|est|incl|chg|liq|min|max|no|bal|etc|ca|resp|curr|prev|pos|dir|str|mod)$",
    re.IGNORECASE,
)


def spoken_text(text: str) -> str:
    """The text without finished thinking; some servers swallow the opening mark and keep the closing one."""
    # Split at the marks: a search for whole thoughts takes time that grows with the square of the length.
    *ended, rest = _THINKING_ENDS.split(text)
    spoken = ""
    for piece in ended:
        before, *thought = _THINKING_BEGINS.split(piece, maxsplit=1)
        spoken = spoken + before if thought else ""
    return (spoken + rest).strip()


def has_open_thinking(spoken: str) -> bool:
    """Whether a mark that begins thinking is left in the text: then the thinking was cut off."""
    return _THINKING_CUT.search(spoken) is not None


def control_token(text: str) -> str | None:
    """The first control token, tag or channel mark in a text that was spoken, or None."""
    for pattern in (CONTROL_TOKEN, _TAG, _BROKEN_TAG, _CHANNEL):
        if found := pattern.search(text):
            return found[0].strip()
    return None


def hidden_character(text: str) -> str | None:
    """The name of the first invisible character (control, format, private use), or None."""
    for character in text:
        if character not in "\n\r\t" and unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Cs"):
            return unicodedata.name(character, f"U+{ord(character):04X}")
    return None


def foreign_letter(text: str) -> str | None:
    """The first letter of another script, or None. One Greek letter alone, such as in ``Δ price``, is a sign."""
    for place, character in enumerate(text):
        if not character.isalpha():
            continue
        name = unicodedata.name(character, "")
        if name.startswith(("LATIN", "MICRO SIGN")) or (
            " LATIN " in name and name.startswith(("SUPER", "SUB", "MODIFIER"))
        ):
            continue
        if name.startswith("GREEK") and not _touches_greek(text, place):
            continue
        return character
    return None


def _touches_greek(text: str, place: int) -> bool:
    around = text[max(place - 1, 0) : place] + text[place + 1 : place + 2]
    return any(unicodedata.name(character, "").startswith("GREEK") for character in around)


def has_latex(draft: str) -> bool:
    """Whether a draft holds a LaTeX command or bracket."""
    return _LATEX.search(draft) is not None


def without_fences(text: str) -> str:
    """The text without its code fences, if each that opens also closes; ordinary blanks for wide ones."""
    text = _WIDE_SPACES.sub(" ", text)
    return _FENCE.sub("", text) if len(_FENCE.findall(text)) % 2 == 0 else text


def has_fence(text: str) -> bool:
    """Whether the line of a code fence stands in the text."""
    return _FENCE.search(text) is not None


def split_drafts(text: str) -> tuple[str, ...]:
    """The drafts before the separator, without list marks: lines, or the parts of a line such as ``a; b; c.``."""
    return tuple(draft for line in text.splitlines() for draft in _drafts_of(line))


def _drafts_of(line: str) -> list[str]:
    drafts = []
    for part in _LIST_MARK.sub("", line.strip()).split(";"):
        sentences = [""]
        rest = part
        while rest:
            end = _next_sentence_end(rest)
            sentences.append(rest if end is None else rest[: end.start()])
            rest = "" if end is None else rest[end.end() :]
        drafts += [_clean(sentence) for sentence in sentences]
    return [draft for draft in drafts if draft]


def _next_sentence_end(text: str) -> re.Match[str] | None:
    def is_abbreviation(end: re.Match[str]) -> bool:
        return _ABBREVIATION.search(text[max(end.start() - 8, 0) : end.start()]) is not None

    return next((end for end in _SENTENCE_END.finditer(text) if not is_abbreviation(end)), None)


def _clean(draft: str) -> str:
    draft = _LIST_MARK.sub("", draft.strip()).replace("**", "").strip("`* ")
    if _RULE.fullmatch(draft) or draft == SEPARATOR:
        return ""
    return draft[:-1].rstrip() if re.search(r"\w\.$", draft) else draft
