"""Near controls: questions in a trading prompt's clothes that ask for no trade.

They begin like trading prompts, or hold one, and are made from the same synthetic windows, but ask for something else.
A student that has seen only distant controls ("coal is black") answers a beginning, not a question.

Three families are held out: they are asked in the test split alone. Of the other families, the last wording of each is
kept for the test split too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.distillation.controls import Control
from apeagent_pipeline.distillation.printed_numbers import token_text


@dataclass(frozen=True)
class Family:
    """One kind of question.

    Attributes:
        name: In the dataset and the reports.
        wordings: ``{facts}`` stands for the facts of a trading prompt, ``{prompt}`` for all of it, ``{eth}`` and
            ``{usdc}`` for the holdings.
        answer: A short written answer for trainers that do not ask the base model itself.
        held_out: Asked in the test split alone.
        share: How often it is drawn in train and valid beside the others.
        swaps: Words of the trading prompt that are replaced, such as its pair; each option is one set.
    """

    name: str
    wordings: tuple[str, ...]
    answer: str
    held_out: bool = False
    share: int = 1
    swaps: tuple[tuple[tuple[str, str], ...], ...] = ()


_PAIRS = tuple(
    (("ETH", base), ("USDC", quote))
    for base, quote in (
        ("BTC", "USDT"), ("SOL", "EUR"), ("DOGE", "BTC"), ("LINK", "DAI"), ("WBTC", "USDT"), ("AVAX", "USDT"),
        ("silver", "euros"), ("apples", "coins"), ("PEPE", "SOL"), ("XRP", "GBP"), ("ADA", "USDT"),
        ("oil", "dollars"), ("UNI", "DAI"), ("Tesla", "dollars"), ("LTC", "BTC"), ("wheat", "pounds"), ("MATIC", "EUR"),
        ("gold", "dollars"),
    )
)  # fmt: skip

FAMILIES = (
    Family(
        "explain",
        (
            "{facts}please explain what volatility means here.",
            "{facts}What does a tick mean?",
            "{facts}Can you explain what a portfolio is?",
            "{facts}What is liquidity on Uniswap?",
            "{facts}What is an LP in such a pool?",
            "{facts}I am new here. what is slippage?",
            "{facts}Where do these numbers come from?",
            "{facts}what is the difference between volume and volatility?",
            "{facts}Is 1 tick the same as 1 basis point? Explain it to me.",
            "{facts}What would a teacher say about these numbers? Explain each of them.",
            "{facts}please tell me what these numbers mean.",
        ),
        "Volatility says how much the price moves.",
    ),
    Family(
        "translate",
        (
            "Translate into German: {prompt}",
            "Translate this sentence into French: {prompt}",
            "{prompt} Translate this question into Spanish.",
            "Please put this into Portuguese: {prompt}",
            'Translate the text in quotes: "{prompt}"',
            "{prompt} Say this in Japanese.",
            "Into Turkish, please, word by word: {prompt}",
            "I need this in Dutch. {prompt}",
            "{prompt} (only translate this, into Polish)",
            "How do you say this in Italian? {prompt}",
        ),
        "The sentence asks about the price and the portfolio.",
        share=2,  # many wordings end with the question of a trading prompt, as do those of the next two
    ),
    Family(
        "rewrite",
        (
            "Make this message shorter: {prompt}",
            'Correct the spelling of this text: "{prompt}"',
            "Write this again in polite words: {prompt}",
            'Turn this message into a list: "{prompt}"',
            "Make this longer: {prompt}",
            'Which words of this text would you leave out? "{prompt}"',
            "Rewrite this as a headline: {prompt}",
            "Put the following into capital letters: {prompt}",
            '"{prompt}" Say this in simpler words.',
            "Write this as a table: {prompt}",
            "{prompt} Repeat my message without its numbers.",
            '"{prompt}" Please rewrite this in the third person.',
        ),
        "It asks about a portfolio and a price.",
        share=2,
    ),
    Family(
        "pass on",
        (
            'Send this to my accountant: "{prompt}"',
            "Remind me tomorrow to ask this: {prompt}",
            'Save this note for later: "{prompt}"',
            'I will ask my bank this: "{prompt}" Which bank is large?',
            "Forward this to my brother: {prompt}",
            'Write a mail to my broker that asks this: "{prompt}"',
            "Add this to my list of open questions: {prompt}",
            'Post this in our chat: "{prompt}"',
            "Write this on a card for me: {prompt}",
            'Tell Carol that I asked this: "{prompt}"',
            "Ask me this again next week: {prompt}",
            'Draft a letter with this question in it: "{prompt}"',
            'Put this into a mail to Eve: "{prompt}"',
        ),
        "I can not send messages.",
        share=2,
    ),
    Family(
        "worth",
        (
            "{facts}how much is my portfolio worth in USDC?",
            "{facts}What is the total value of my wallet?",
            "{facts}How many USDC would all of my ETH be worth?",
            "{facts}What is all of it worth in dollars?",
            "{facts}Give me the value of my ETH alone.",
            "{facts}how rich am I?",
            "{facts}Is my ETH worth more than my USDC?",
            "{facts}what share of my portfolio is ETH?",
            "What is the sum of my holdings in USDC? {facts}",
            "{facts}what is my portfolio worth?",
        ),
        "It is the ETH times the price, plus the USDC.",
    ),
    Family(
        "past",
        (
            "{facts}I have already traded today. Thank you.",
            "Yesterday I wrote: {facts}I traded an hour ago. What was the price?",
            "{facts}Last week I asked you this and traded. It went well, thanks!",
            "{facts}I sold all of it this morning. Was that long ago?",
            "{facts}That was last year, and I bought then.",
            "We spoke about this: {facts}The trade is done now, I only wanted to tell you.",
            "{facts}My trade went through a minute ago.",
            "{facts}What did I ask you yesterday?",
            "These were my numbers a month ago: {facts}I bought. How long is a month?",
            "{facts}I closed my position, so there is nothing left to do.",
            "{facts}I have traded already, how do I keep a record of it?",
        ),
        "You are welcome.",
    ),
    Family(
        "hypothetical",
        (
            "{facts}What would my ETH be worth if the price doubled?",
            "Imagine this: {facts}Why might prices fall in such a market?",
            "{facts}If I had no USDC at all, what would be different?",
            "{facts}What if there were no Uniswap at all?",
            "If this were a novel, what would happen next? {facts}",
            "{facts}Assume that ETH is worth nothing. How much would I have?",
            "{facts}How would you feel if this were your wallet?",
            "Let us pretend: {facts}Where would we be if the price were 1?",
            "{facts}If I had ten times as much ETH, how much would that be?",
            "{facts}Suppose that the price were half of it. What would the portfolio be worth?",
        ),
        "It would be worth twice as much.",
    ),
    Family(
        "refusal",
        (
            "{facts}Do not trade, just summarise.",
            "{facts}I do not want to trade. Describe the market in one sentence.",
            "Please give no trading advice. {facts}Sum it up in plain words.",
            "{facts}Do not tell me what to do. Just say whether the market is calm.",
            "{facts}I want no recommendation, only the facts in one line.",
            "Without any advice: {facts}What do you see?",
            "{facts}I am not going to trade today. How are you?",
            "{facts}Please do not answer with a trade. Is this a large volume?",
            "I never trade. {facts}Describe what these numbers say.",
            "{facts}Only watch, do nothing, and say that you have read it.",
            "{facts}No trade please, only a summary of these numbers.",
        ),
        "The price and the portfolio are as you say.",
    ),
    Family(
        "other pair",
        ("{prompt}",),
        "I only know one pair of tokens.",
        share=3,  # nothing but two words tells it from a trading prompt
        swaps=_PAIRS,
    ),
    Family(
        "other venue",
        (
            "{facts}Which fees does Coinbase take?",
            "{facts}How do I open an account at Binance?",
            "{facts}How do I send my ETH to Kraken?",
            "{facts}What is the difference between Uniswap and Kraken?",
            "{facts}Does Binance have an app?",
            "{facts}How do I move my USDC to a bank account?",
            "{facts}Is there a fee for a transfer to Coinbase?",
            "What do I need to register at Gemini? {facts}",
            "{facts}Which exchange is the oldest?",
            "{facts}how long does a withdrawal from Bitstamp take?",
            "{facts}Is Coinbase or a bank better for a beginner?",
        ),
        "Fees differ from one venue to another.",
    ),
    Family(
        "thanks",
        (
            "{facts}Thank you, that is all.",
            "{facts}Thanks for your help, goodbye!",
            "Thank you for the answer! {facts}Have a nice day.",
            "{facts}Great, thanks!",
            "{facts}Bye, see you tomorrow.",
            "{facts}You have been very helpful.",
            "Thanks a lot! {facts}I will come back later.",
            "{facts}ok thank you, good night",
            "{facts}Perfect, I have all I need.",
            "{facts}Good morning! How are you today?",
            "{facts}That was all I wanted to say. Thank you.",
        ),
        "You are welcome.",
    ),
    Family(
        "which word",
        (
            "{facts}what is the price trend called when it goes up?",
            "{facts}Which word do people use for a falling market?",
            "{facts}What do you call a market that does not move?",
            "{facts}What is the opposite of a downtrend?",
            "{facts}Which term describes so much trading?",
            "{facts}What is a wallet with both tokens called?",
            "What is the word for this kind of market? {facts}",
            "{facts}What does one call a person who holds ETH?",
            "{facts}What is the short form of basis points?",
            "{facts}how do you spell volatility?",
            "{facts}What is another word for volatility?",
        ),
        "An uptrend.",
    ),
    Family(
        "read out",
        (
            "{facts}What is the ETH price? Repeat it only.",
            "{facts}Which of my two tokens do I have more of?",
            "{facts}List the numbers of this text.",
            "{facts}Read my holdings back to me.",
            "{facts}What was the volatility again?",
            "{facts}how much ETH do I have?",
            "{facts}Copy the price change only.",
            "Which numbers are in here? {facts}",
            "{facts}Which of these numbers is the largest?",
            "{facts}Say the price in words.",
            "{facts}How many USDC did I say I have?",
        ),
        "It stands in your message.",
    ),
    Family(
        "creative",
        (
            "{facts}Write a short poem about it.",
            "{facts}Write a title for a blog post about this market.",
            "Tell a story that begins like this: {facts}",
            "{facts}Make a song of these numbers.",
            "Invent a hero for this story: {facts}",
            "{facts}Draw this market with words.",
            "{facts}Write a haiku about my wallet.",
            "Write a tweet that starts like this: {facts}",
            "{facts}Find a name for a cat that lives in this market.",
            "{facts}Write a riddle about the price.",
            "{facts}Write a joke about it.",
        ),
        "Numbers go up and numbers go down.",
    ),
    Family(
        "help",
        (
            "{facts}How does a swap on Uniswap work?",
            "{facts}Is Uniswap safe?",
            "{facts}Who made Uniswap?",
            "{facts}What happens if I lose my keys?",
            "{facts}What is gas?",
            "{facts}Which wallet do you recommend for my phone?",
            "{facts}What is USDC backed by?",
            "{facts}Do I have to pay taxes for that?",
            "How old is Ethereum? {facts}",
            "{facts}What is Base, and who runs it?",
            "{facts}can somebody see what I hold?",
            "{facts}How can I protect my wallet?",
        ),
        "A swap exchanges one token for another in a pool.",
    ),
    Family(
        "add up",
        (
            "{facts}How much ETH do I have if a friend gives me 2 more?",
            "What is {eth} plus 3? {facts}",
            "{facts}Please divide my USDC by 4.",
            "{facts}Is {usdc} more than 1000?",
        ),
        "Add the two numbers.",
        held_out=True,
    ),
    Family(
        "third person",
        (
            'My brother wrote to his broker: "{prompt}" What does he own?',
            'Alice asked a bot: "{prompt}" Was she polite?',
            "Bob says: {facts}What is his name?",
            'My sister got this mail: "{prompt}" Who should answer her?',
        ),
        "He owns ETH and USDC.",
        held_out=True,
    ),
    Family(
        "quoted",
        (
            'Count the words in this text: "{prompt}"',
            'Is the grammar of this sentence right? "{prompt}"',
            'In which language is this written: "{prompt}"',
            'What is this text about? "{prompt}"',
        ),
        "It is a question about a market.",
        held_out=True,
    ),
)


HELD_OUT = tuple(family.name for family in FAMILIES if family.held_out)


def near_controls(prompts: pl.DataFrame, split: str, n: int, seed: int) -> list[Control]:
    """Draw questions of one split, families in turn, each about another trading prompt where there are enough.

    Args:
        prompts: Rows of ``build_prompts``.
        split: ``train``, ``valid`` or ``test``.
        n: How many; a larger number only adds.
        seed: Seed of the draw.

    Raises:
        ValueError: if the split has no prompt.
    """
    rows = prompts.filter((pl.col("split") == split) & (pl.col("rendering") != "incomplete"))
    if n and rows.is_empty():
        raise ValueError(f"no trading prompt of the {split} split to make near controls from; build the prompts again")
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(rows.height)
    is_test = split == "test"
    # Held-out families come first, so that a small test split has them too.
    families = [family for family in FAMILIES if family.held_out and is_test]
    families += [family for family in FAMILIES if not family.held_out for _ in range(1 if is_test else family.share)]
    asked: dict[str, Control] = {}
    attempts = 0
    while len(asked) < n:
        # A step more after every round, so that a family meets another prompt each time.
        row = rows.row(int(order[(attempts + attempts // len(order)) % len(order)]), named=True)
        control = _control(families[attempts % len(families)], row, split, rng)
        asked.setdefault(control.prompt, control)
        attempts += 1
        if attempts > 50 * n:
            raise ValueError(
                f"{rows.height} {split} prompts give {len(asked)} near controls, {n} are wanted: ask for more "
                "prompts or fewer near controls"
            )
    return list(asked.values())


def _control(family: Family, row: dict[str, Any], split: str, rng: np.random.Generator) -> Control:
    keeps_back = split != "test" and not family.held_out
    wordings = family.wordings[:-1] if keeps_back and len(family.wordings) > 1 else family.wordings
    wording = wordings[rng.integers(len(wordings))]
    facts, question = row["facts"], row["question"]
    for old, new in family.swaps[rng.integers(len(family.swaps) - keeps_back)] if family.swaps else ():
        facts, question = facts.replace(old, new), question.replace(old, new)
    places = {"eth": token_text(row["eth"]), "usdc": token_text(row["usdc"])}
    prompt = (facts + question).strip()
    before, _, after = wording.partition("{facts}")
    if after and facts.rstrip().endswith(",") and not after.startswith("I "):
        after = after[0].lower() + after[1:]
    text = f"{before}{facts if '{facts}' in wording else ''}{after}"
    for name, value in {**places, "prompt": prompt}.items():
        text = text.replace(f"{{{name}}}", value)
    return Control(text, family.answer, family.name, split)
