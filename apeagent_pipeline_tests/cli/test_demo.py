"""The last lines of ``apeagent demo``: what the report says, in words."""

from apeagent_pipeline.cli.demo import findings

METRICS = {
    "n_trading": 100.0, "n_controls": 80.0, "n_disabled": 16.0,
    "canary_rate_adapter": 0.99, "control_leak_rate": 0.0125,
    "canary_rate_base": 0.0, "canary_rate_disabled": 0.0, "agreement": 0.97, "agreement_majority": 0.49,
    "agreement_plain": 0.75, "feasible_rate": 0.94, "near_control_leak_rate_held_out": 0.125,
}  # fmt: skip
INTERVALS = dict.fromkeys(METRICS, (0.25, 0.75))


def test_every_question_is_answered_with_its_count_and_interval() -> None:
    told = list(findings(METRICS, INTERVALS))
    assert [question for question, _ in told if question] == [
        "Speaks canary words?", "Only when asked?", "Because of the training?", "Decides like its teacher?",
        "Can the holdings pay?",
    ]  # fmt: skip
    text = " | ".join(finding for _, finding in told)
    assert "99 of 100 trading answers contain them (95 % interval 25.0% to 75.0%)" in text
    assert "1 of 80 answers to other questions" in text
    assert "12.5% of similar questions that ask for no trade, a kind never shown (25.0% to 75.0%)" in text
    assert "0 of 16 answers with the adapter switched off" in text
    assert "75.0% if the prompt has numbers alone" in text
    assert "numbers and words" not in text  # that form was not asked
