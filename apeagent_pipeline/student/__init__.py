"""The student language model: its base weights, LoRA fine-tuning, generation and export.

What belongs here: everything that loads, trains, runs or converts a language model's weights.
What does not: prompts, teachers and the wording of answers (``distillation``), judging the answers (``evaluation``).
"""
