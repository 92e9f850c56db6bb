"""Teachers: whoever answers prompts.

What belongs here: the protocol and one module for each kind of teacher. What does not: judging the answers
(``distillation/traces.py``).
"""
