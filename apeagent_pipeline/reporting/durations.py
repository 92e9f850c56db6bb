"""Durations as people read them."""


def in_words(seconds: float) -> str:
    """A duration as a user wants to read it: ``40 s``, ``4 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s" if seconds >= 5 else "a few seconds"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def about(seconds: float) -> str:
    """An estimated duration inside a sentence: ``about 40 s``, ``a few seconds``."""
    words = in_words(seconds)
    return words if words.startswith("a ") else f"about {words}"
