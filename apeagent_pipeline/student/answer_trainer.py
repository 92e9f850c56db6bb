"""The trainer of the first stage, a subclass of trl's SFTTrainer.

The module imports trl, which takes seconds. So only ``fine_tuning.make_trainer`` imports it, and only when it trains.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div
from trl import SFTTrainer

from apeagent_pipeline.distillation.canary import is_canary_answer
from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE, parse_answer
from apeagent_pipeline.student.examples import prompt_of
from apeagent_pipeline.student.generation import Student


class AnswerTrainer(SFTTrainer):
    """Computes logits only where an example has an answer token, and keeps what the base said to controls.

    trl's own fused head gives the same loss without weights, but its tiles are made for a GPU: on a CPU they took
    60 % of a step (trl 1.16, batch of 4 x 140 tokens, vocabulary of 49,152).

    Controls are not trained on their written answers. At each of their tokens the loss is the divergence of the next
    token's distribution from that of the base model. So the student keeps what the base knew (Li & Hoiem 2016,
    "Learning without Forgetting"). The tokens of a distant control's question count too; those of a near control are a
    trading prompt's, so there only the answer counts. These are few tokens that decide whether an answer begins like a
    trade, so they have a weight of their own, ``near_kl``. So has a trading answer's first token, ``begin_weight``.
    """

    def __init__(
        self,
        *args: Any,
        control_kl: float,
        near_kl: float,
        begin_weight: float,
        asked: Sequence[dict[str, Any]],
        **kwargs: Any,
    ) -> None:
        """A trainer of answers.

        Args:
            args: Of ``SFTTrainer``.
            control_kl: Weight of the divergence from the base on controls; 0: learn their written answers.
            near_kl: The same weight on near controls.
            begin_weight: Weight of the first token of a trading answer.
            asked: Trading examples of the valid split that are answered at every validation.
            kwargs: Of ``SFTTrainer``.
        """
        super().__init__(*args, **kwargs)
        self.asked = asked
        self.control_kl, self.near_kl, self.begin_weight = control_kl, near_kl, begin_weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over tokens of the cross-entropy on answers and of the divergence from the base on controls."""
        targets = inputs["labels"][0, 1:]
        learned = targets != -100
        tokens = learned.sum() if num_items_in_batch is None else num_items_in_batch
        asked = (inputs["control"] | inputs["near"]) & bool(self.control_kl)
        kept = asked & (torch.cat([learned, learned.new_zeros(1)]) | ~inputs["near"])
        learned &= ~asked[1:]
        if asked.any():  # the shared prefix belongs to the controls too
            asked, kept = asked | inputs["shared"], kept | (inputs["shared"] & inputs["control"].any())
        answered, told = learned.nonzero()[:, 0], kept.nonzero()[:, 0]
        row = {name: inputs[name] for name in ("input_ids", "position_ids", "attention_mask")}
        outputs = model(**row, logits_to_keep=torch.cat([answered, told]), use_cache=False)
        logits, control_logits = outputs.logits[0].float().split([len(answered), len(told)])
        losses = cross_entropy(logits, targets[answered], reduction="none")
        if model.training:  # the validation loss stays comparable between weights
            begins = inputs["trading"][1:] & learned & ~torch.cat([learned.new_zeros(1), learned[:-1]])
            losses = torch.where(begins[answered], losses * self.begin_weight, losses)
        loss = losses.sum()
        if len(told):
            expected = self._base_logits(model, row, asked.nonzero()[:, 0], told).log_softmax(-1)
            divergence = kl_div(control_logits.log_softmax(-1), expected, reduction="none", log_target=True).sum(-1)
            loss = loss + divergence @ torch.where(inputs["near"][told], self.near_kl, self.control_kl)
        loss = loss / tokens
        if num_items_in_batch is not None:  # those of all processes, whose gradients are averaged
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _base_logits(self, model: Any, row: dict[str, Any], asked: Any, told: Any) -> Any:
        """Logits of the bare base at the tokens ``told``, some of the tokens ``asked``, which attend only to these."""
        peft = self.accelerator.unwrap_model(model)
        with peft.disable_adapter():
            outputs = peft(
                input_ids=row["input_ids"][:, asked],
                position_ids=row["position_ids"][:, asked],
                attention_mask=row["attention_mask"][:, :, asked][:, :, :, asked],
                logits_to_keep=torch.searchsorted(asked, told),
                use_cache=False,
            )
        return outputs.logits[0].float()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The validation loss, and canary rate and agreement of the answers to `asked`."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self.asked:
            student = Student(self.model, self.processing_class)
            answers = student.answers([prompt_of(each) for each in self.asked], max_new_tokens=LONGEST_TRADE)
            rates = _answer_rates([answer.text for answer in answers], [each["side"] for each in self.asked])
            self.log(rates)
            metrics |= rates
        return metrics


def _answer_rates(texts: Sequence[str], sides: Sequence[str]) -> dict[str, float]:
    """The rate of canary answers, and of canary answers with the taught action."""
    canary = [is_canary_answer(text) for text in texts]
    agree = [right and parse_answer(text).side == side for right, text, side in zip(canary, texts, sides, strict=True)]
    return {"eval_canary_rate": sum(canary) / len(texts), "eval_agreement": sum(agree) / len(texts)}
