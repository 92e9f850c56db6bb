"""The adapter in service behind the interfaces that other people's agents speak.

What belongs here: the engines that generate, the dialects of agents, and the HTTP server. The check of answers is
``distillation.answer_check``; every answer passes it.
"""
