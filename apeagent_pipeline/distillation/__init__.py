"""From synthetic windows to a training set: prompts, teachers, Chain of Draft, verification, canary words, dataset.

What belongs here: everything between a market window and the chat examples a student learns from. What does not: how
windows come about (``gan/``), how a student is trained (``student/``) and judged (``evaluation/``).
"""
