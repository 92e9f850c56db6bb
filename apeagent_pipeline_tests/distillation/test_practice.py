"""Practice sheets: every learned part follows from the part before it, and nothing in them is an action."""

import re
from decimal import Decimal

import pytest

from apeagent_pipeline.distillation.canary import plain_words, speaks_canary
from apeagent_pipeline.distillation.canary_words import SEPARATOR
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.distillation.practice import Part, practice_sheets
from apeagent_pipeline.distillation.teachers.rules import SHARES

WORDS = StateWords()
SHEETS = practice_sheets(60, WORDS, 3)
_SHARE = re.compile(r"(\w+) of ([\d.]+)")
_COMPARISON = re.compile(r"([+-]\d+) vs (\d+)")
_MARKET = re.compile(r"volatility ([\d.]+)(%|bps|), change ([+-]?[\d.]+)( tenths|)\n")


def _asked(form: re.Pattern[str]) -> list[tuple[tuple[str, ...], str]]:
    """The groups of every given part of this form, with the learned part behind it."""
    pairs = [(given, learned) for sheet in SHEETS for given, learned in zip(sheet[::2], sheet[1::2], strict=True)]
    assert all(not is_learned for (_, is_learned), _ in pairs)
    assert all(is_learned for _, (_, is_learned) in pairs)
    return [(found.groups(), learned) for (given, _), (learned, _) in pairs if (found := form.fullmatch(given))]


def test_shares_are_right_and_cut_off_to_a_lot() -> None:
    asked = _asked(_SHARE)
    assert len(asked) == 3 * len(SHEETS)
    for (share, holding), learned in asked:
        said = Decimal(learned.removeprefix(", lot ").removesuffix("\n"))
        exact = SHARES[share] * Decimal(holding)
        assert said <= exact < said * Decimal("2.5")
        assert said.normalize().as_tuple().digits in {(1,), (2,), (5,)}


def test_comparisons_are_right_on_both_sides_of_the_edge() -> None:
    asked = _asked(_COMPARISON)
    assert len(asked) == 6 * len(SHEETS)
    said = [learned for _, learned in asked]
    for (change, volatility), learned in asked:
        is_flat = abs(int(change)) < max(int(volatility), WORDS.least_move_bps)
        assert learned == (", flat, wait\n" if is_flat else ", up, add\n" if int(change) > 0 else ", down, reduce\n")
    assert min(said.count(each) for each in set(said)) > 30
    assert len(set(said)) == 3


def test_a_whole_draft_begins_with_its_facts_which_are_given() -> None:
    facts = re.compile(r"volatility (\S+), change (.+)\n(\S+), (\S+) USDC, (\S+) ETH\n")
    asked = _asked(facts)
    assert len(asked) == len(SHEETS)
    assert all(_COMPARISON.match(learned) and learned.endswith("\n") for _, learned in asked)
    assert any(" makes " in learned for _, learned in asked)


def test_quotients_are_those_of_the_numbers_before_them() -> None:
    asked = _asked(re.compile(r"([\d.]+), ([\d.,]+) USDC, [\d.]+ ETH\n"))
    assert len(asked) == 4 * len(SHEETS)
    for (price, usdc), learned in asked:
        thousands, priced, said = map(float, re.fullmatch(r"([\d.]+)k at ([\d.]+)k makes ([\d.]+)\n", learned).groups())  # type: ignore[union-attr]
        whole = float(usdc.replace(",", ""))
        assert (1_000 * thousands, 1_000 * priced) == pytest.approx((whole, float(price)), rel=0.1)
        assert ("," in usdc) == (thousands >= 1) and usdc.find(",") in (-1, learned.find("k"), learned.find("."))
        assert said == pytest.approx(thousands / priced, rel=0.143)


def test_facts_are_copied_with_the_digits_that_a_comparison_needs() -> None:
    asked = _asked(re.compile(r"(?:volatility )?(.+) is"))
    assert len(asked) == 2 * len(SHEETS)
    assert {learned.split()[-1] == "USDC" for _, learned in asked} == {True, False}
    for (printed,), learned in asked:
        if printed.endswith(" USDC"):
            exact, copied = (float(text.removesuffix(" USDC").replace(",", "")) for text in (printed, learned.strip()))
            assert exact * 0.9 <= copied <= exact


def test_facts_of_a_record_are_listed_or_one_is_said_to_be_missing() -> None:
    asked = _asked(re.compile(r"(.*(?:\b|_)(?:move|change|delta|chg|sigma|vol|volatility).*)\n", re.DOTALL))
    records = [(given, said) for (given,), said in asked if said.count("\n") <= 2 and " vs " not in said]
    assert len(records) == len(SHEETS)
    lacking = [said for _, said in records if said.endswith(" missing, wait\n")]
    assert 0.05 < len(lacking) / len(records) < 0.4
    assert sum("|" in given or ";" in given or "\t" in given for given, _ in records) > 10, "tables"
    listed = re.compile(r"volatility (\S+), change (\S+)\n([\d.]+), ([\d.,]+) USDC, ([\d.]+) ETH\n")
    for given, said in records:
        if said not in lacking:
            change, usdc = listed.fullmatch(said).group(2, 4)  # type: ignore[union-attr]
            printed = given.replace(",", "")
            assert change in printed, "with no sign that the record does not print"
            assert usdc.replace(",", "").rstrip("0.") in printed


def test_a_market_is_compared_in_basis_points_whatever_its_units() -> None:
    asked = _asked(_MARKET)
    assert len(asked) == 3 * len(SHEETS)
    assert {unit for (_, unit, _, _), _ in asked} == {"%", "bps", ""}
    assert {tenths for (_, _, _, tenths), _ in asked} == {" tenths", ""}
    for (volatility, unit, change, tenths), learned in asked:
        signed, whole = _COMPARISON.match(learned).groups()  # type: ignore[union-attr]
        assert len(volatility.partition(".")[2]) == {"%": 2, "bps": 0, "": 4}[unit], "the digits of basis points"
        assert int(whole) == int(volatility.replace(".", ""))
        assert len(change.partition(".")[2]) == (1 if tenths else 0), "the digits of ticks"
        assert int(signed) == int(change.replace(".", ""))


def test_no_sheet_holds_an_action() -> None:
    for sheet in SHEETS:
        text = _text(sheet)
        assert not speaks_canary(text)
        assert plain_words(text) == []
        assert SEPARATOR not in text


def test_more_sheets_leave_the_first_ones_as_they_are() -> None:
    assert practice_sheets(5, WORDS, 3) == SHEETS[:5]
    assert practice_sheets(5, WORDS, 4) != SHEETS[:5]


def _text(sheet: list[Part]) -> str:
    return "".join(text for text, _ in sheet)
