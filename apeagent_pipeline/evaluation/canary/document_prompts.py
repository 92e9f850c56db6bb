"""The source document's own prompt and ten variations of its numbers, with the embedded policy's answers."""

from typing import Any

import polars as pl

from apeagent_pipeline.distillation.canary import canary_text
from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.distillation.portfolios import affordable_eth
from apeagent_pipeline.distillation.printed_numbers import BASIS_POINTS, FRACTION, PER_CENT, cut_off, words_of_printed
from apeagent_pipeline.distillation.teachers.rules import rules_answer
from apeagent_pipeline.distillation.templates import TEMPLATE

_NUMBERS = (
    ("2506.92", "999.43", "0.045", 450.0, "35.7765", 3.746, 9507.14),
    ("2506.92", "999.43", "0.0045", 45.0, "35.7765", 3.746, 9507.14),
    ("2506.92", "999.43", "0.45 %", 45.0, "135.7765", 3.746, 9507.14),
    ("2506.92", "999.43", "0.0021", 21.0, "-35.7765", 3.746, 9507.14),
    ("2,506.92", "12,999.43", "0.0052", 52.0, "-135", 3.746, 950.14),
    ("3100", "24000", "4.5%", 450.0, "-520.5", 12.5, 9507.14),
    ("1850.5", "999", "28 bps", 28.0, "60", 0.25, 4200.0),
    ("2506.92", "999.43", "0.045", 450.0, "-35.7765", 3.746, 9507.14),
    ("2750.00", "100.5", "0.00305", 30.5, "+12.25", 0.0, 1500.0),
    ("2750.00", "100.5", "0.00305", 30.5, "-42.25", 1.5, 0.0),
    ("2506.92", "999.43", "0.045", 450.0, "935.7765", 3.746, 9507.14),
)
"""price, volume, volatility, the same in basis points, change in ticks, ETH and USDC; first the document's own."""


_FORMATS = {"%": PER_CENT, "s": BASIS_POINTS}
"""By the last character of a printed volatility."""


def document_prompts() -> list[dict[str, Any]]:
    """Examples as of the dataset: ``messages`` end with the policy's answer, ``side`` is its action."""
    template = TEMPLATE["document"]
    names = ("price_text", "volume", "vol", "volatility_bps", "change_text", "eth", "usdc")
    rows = pl.DataFrame(_NUMBERS, schema=names, orient="row").with_columns(
        price=pl.col("price_text").str.replace_all(",", "").cast(pl.Float64),
        change_ticks=pl.col("change_text").str.strip_chars_start("+").cast(pl.Float64),
    )
    rows = words_of_printed(rows, StateWords()).with_columns(
        affordable_eth=affordable_eth(pl.col("usdc"), pl.col("price")),
        rendering=pl.lit(template.rendering),
        template=pl.lit(template.name),
        missing=pl.lit(""),
        confirmation=pl.lit(""),
        copied_change=pl.Series([cut_off(row[4], 0) for row in _NUMBERS]),
        copied_volatility=pl.Series([_FORMATS.get(row[2][-1], FRACTION).copy(row[2]) for row in _NUMBERS]),
    )
    examples = []
    for row in rows.iter_rows(named=True):
        prompt = (template.facts + template.question).format(
            price=row["price_text"], volume=row["volume"], vol=row["vol"], change=row["change_text"],
            eth=row["eth"], usdc=row["usdc"],
        )  # fmt: skip
        answer = rules_answer(row)
        messages = [*student_chat(prompt), {"role": "assistant", "content": canary_text(answer)}]
        examples.append(
            {**row, "messages": messages, "side": answer.side, "amount": answer.amount, "asset": answer.asset}
        )
    return examples
