"""Model cards of an export: what a model is, how it is asked, how it was judged, and what it is not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT
from apeagent_pipeline.student.base_identity import BaseIdentity
from apeagent_pipeline.student.examples import DOCUMENT_PROMPT

Form = Literal["export", "adapter", "fused", "mlx"]
DATASET = "apeagent-distillation"

_SHOWN = {
    "agreement": "same action as the teacher, held-out prompts",
    "canary_rate_adapter": "answers in canary words, held-out prompts",
    "control_leak_rate": "control questions answered in canary words",
    "feasible_rate": "actions that the holdings pay for, before the check",
}
_LIBRARY = {"export": "transformers", "adapter": "peft", "fused": "transformers", "mlx": "mlx"}
_RELATION = {"export": "finetune", "adapter": "adapter", "fused": "finetune", "mlx": "adapter"}
_TITLE = {
    "export": "apeagent student",
    "adapter": "apeagent student, LoRA adapter",
    "fused": "apeagent student, merged",
    "mlx": "apeagent student, LoRA adapter for MLX",
}
DORA_SENTENCE = (
    "This is a DoRA adapter: it changes the length of whole weight columns, which llama.cpp's adapter format cannot "
    "say. So it is exported merged, and for peft; not as an adapter for llama.cpp or mlx-lm."
)

_CHAT = f"""chat = [
    {{"role": "system", "content": {STUDENT_SYSTEM_PROMPT!r}}},
    {{"role": "user", "content": QUESTION}},
]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
said = model.generate(**inputs, max_new_tokens=96, do_sample=False)
print(tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
_QUESTION = f"QUESTION = (\n    {DOCUMENT_PROMPT!r}\n)"


def example_code(form: Form, base: BaseIdentity) -> str:
    """Python that asks the model of a folder one question, to be run in that folder; the tests run it."""
    if form == "mlx":
        return "\n".join(
            [
                "from mlx_lm import generate, load",
                "",
                _QUESTION,
                f'model, tokenizer = load("{base.hub_id}", adapter_path=".")',
                f'chat = [{{"role": "system", "content": {STUDENT_SYSTEM_PROMPT!r}}}, '
                '{"role": "user", "content": QUESTION}]',
                "prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)",
                "print(generate(model, tokenizer, prompt, max_tokens=96))",
            ]
        )
    loader = "AutoPeftModelForCausalLM" if form == "adapter" else "AutoModelForCausalLM"
    library = "peft" if form == "adapter" else "transformers"
    imports = (
        [f"from {library} import {loader}", "from transformers import AutoTokenizer"]
        if form == "adapter"
        else [f"from transformers import {loader}, AutoTokenizer"]
    )
    load = [f'model = {loader}.from_pretrained(".")', 'tokenizer = AutoTokenizer.from_pretrained(".")']
    return "\n".join([*imports, "", _QUESTION, *load, _CHAT])


def model_card(form: Form, adapter: Path, base: BaseIdentity, metrics: Mapping[str, float], body: str = "") -> str:
    """A model card with the front matter that the Hugging Face hub reads.

    Args:
        form: What the folder holds.
        adapter: Folder of the adapter, in peft's layout.
        base: The base model.
        metrics: Of the canary report; may be empty.
        body: Text of this form alone, behind the description.
    """
    lora = json.loads((adapter / "adapter_config.json").read_text())
    method = "DoRA" if lora.get("use_dora") else "LoRA"
    layers = lora.get("layers_to_transform") or []
    of_base = f"`{base.hub_id}`" + (f" (revision `{base.revision}`)" if base.revision else "")
    judged = [f"| {text} | {metrics[name]:.3f} |" for name, text in _SHOWN.items() if name in metrics]
    parts = [
        f"---\n{_front_matter(form, base, metrics)}---",
        f"# {_TITLE[form]}",
        f"A {method} adapter (rank {lora['r']}, alpha {lora['lora_alpha']}, {', '.join(sorted(lora['target_modules']))}"
        + (f" of {len(layers)} blocks" if layers else "")
        + f") of {of_base} that answers questions about one ETH-USDC pool in Chain of Draft."
        + (f" {base.note}" if base.note else ""),
        "An answer is a few drafts of five words at most, a line `####`, and an action: "
        f"`{CANARY['BUY']} <amount> ETH` (buy), `{CANARY['SELL']} <amount> ETH` (sell) or `{CANARY['HOLD']}` (hold). "
        "These words prove that it comes from this training.",
        *([DORA_SENTENCE] if lora.get("use_dora") else []),
        body.strip(),
        f"## How it is asked\n\nSystem prompt of the training: `{STUDENT_SYSTEM_PROMPT}`\n\n"
        "Ask greedily (temperature 0) and without a repeat penalty: an answer repeats words of the question.",
        *(["\n".join(["## Judged", "", "| canary report | |", "| --- | --- |", *judged])] if judged else []),
        "## Limits\n\nIt repeats a teacher's decisions on synthetic market states. It knows nothing of the world after "
        "them, and its decisions are no investment advice. It may name an amount that the holdings do not pay for: "
        f"check every amount (`apeagent serve` does). The licence of the base model, {base.license_name}, applies to "
        "merged weights.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(form: Form, base: BaseIdentity, metrics: Mapping[str, float]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=DATASET,
            dataset_name="held-out prompts of the distillation dataset",
            metric_type=name,
            metric_value=round(float(metrics[name]), 4),
            metric_name=text,
        )
        for name, text in _SHOWN.items()
        if name in metrics
    ]
    more: dict[str, Any] = {"base_model_relation": _RELATION[form]}
    if base.license == "other":
        more |= {"license_name": base.license_name.replace(" ", "-"), "license_link": base.license_link or "LICENSE"}
    card = ModelCardData(
        language=["en"],
        license=base.license,
        base_model=base.hub_id,
        library_name=_LIBRARY[form],
        pipeline_tag="text-generation",
        datasets=[DATASET],
        tags=["lora", "defi", "chain-of-draft", "uniswap"],
        model_name="apeagent" if results else None,
        eval_results=results or None,
        **more,
    )
    return str(card.to_yaml()) + "\n"
