"""Judging the trained student: does it speak as taught, decide as taught, and what would its decisions have earned.

What belongs here: the canary evaluation, the backtest, their statistics and their reports.
What does not: training and generation (``student``), the grammar of answers and the teacher's rules (``distillation``).
"""
