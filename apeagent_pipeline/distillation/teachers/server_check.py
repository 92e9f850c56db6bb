"""What a server tells before anything is paid: whether the model is offered, the key works, and what credit is left.

Every server with an OpenAI-compatible API lists its models. Routers such as OpenRouter also tell the price of a model,
whether the key is valid, and its credit. A server that does not tell is no problem: the answer is None.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from apeagent_pipeline.distillation.teachers.server_replies import dollars

if TYPE_CHECKING:
    from openai import OpenAI

_TIMEOUT_S = 10.0
_NEAREST = 5


@dataclass(frozen=True)
class ServerCheck:
    """What a server told about a model and a key.

    Attributes:
        problem: What keeps answers from coming, in words; None if nothing is known to.
        remedy: What to change.
        price: US dollars for a million tokens read and written, None where the server does not tell.
        credit_usd: What the key may still spend, None where the server does not tell.
    """

    problem: str | None = None
    remedy: str = ""
    price: tuple[float, float] | None = None
    credit_usd: float | None = None


def check_server(base_url: str, model: str, api_key: SecretStr | None) -> ServerCheck:
    """Ask a server for its models, the key and the credit; costs nothing.

    Args:
        base_url: Where the server's API lies.
        model: The model that will be asked.
        api_key: The key; None for servers that want none.
    """
    import openai

    client = openai.OpenAI(
        base_url=base_url,
        api_key=api_key.get_secret_value() if api_key else "none",
        timeout=_TIMEOUT_S,
        max_retries=0,
    )
    listed = _models(client)
    if not isinstance(listed, dict):
        return listed
    found = next((listed[name] for name in (model, f"{model}:latest") if name in listed), None)
    if found is None:
        return ServerCheck(f"the server does not offer {model}", _choose(model, list(listed)))
    told = _tell(client, "/key")
    if told is _REFUSED:
        return ServerCheck("the server refuses the key", "set APEAGENT_TEACHER_API_KEY")
    credit = _credit(told, _tell(client, "/credits"))
    price = _price(found.get("pricing"))
    if credit is not None and credit <= 0 and price != (0.0, 0.0):
        return ServerCheck("the account has no credit left", "add credit, or choose a free model", price, credit)
    return ServerCheck(price=price, credit_usd=credit)


def _models(client: "OpenAI") -> dict[str, Mapping[str, Any]] | ServerCheck:
    """The models by name with what the server tells about each, or what keeps the list from coming."""
    import openai

    try:
        return {each.id: each.model_extra or {} for each in client.models.list()}
    except openai.AuthenticationError:
        return ServerCheck("the server refuses the key", "set APEAGENT_TEACHER_API_KEY")
    except openai.APIStatusError as error:
        if error.status_code in (404, 405, 501):
            return ServerCheck()  # a server that lists no models
        return ServerCheck(f"the list of models was refused (status {error.status_code})", "try again later")
    except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
        return ServerCheck(
            f"no list of models ({type(error).__name__})", "check APEAGENT_TEACHER_BASE_URL and the server"
        )


_REFUSED = object()


def _tell(client: "OpenAI", path: str) -> Any:
    """The ``data`` of a page; `_REFUSED` if the key is not accepted, None if there is no such page."""
    import openai

    try:
        answer = client.get(path, cast_to=dict[str, Any])
    except openai.AuthenticationError:
        return _REFUSED
    except (openai.OpenAIError, ValueError, TypeError):
        return None
    return answer.get("data") if isinstance(answer, Mapping) else None


def _credit(key: Any, account: Any) -> float | None:
    """Dollars that may still be spent: the smaller of the rests of key and account; None if neither is known."""
    left = []
    if isinstance(key, Mapping) and dollars(key.get("limit_remaining")) is not None:
        left.append(float(key["limit_remaining"]))
    if isinstance(account, Mapping):
        bought, used = dollars(account.get("total_credits")), dollars(account.get("total_usage"))
        if bought is not None and used is not None:
            left.append(bought - used)
    return min(left) if left else None


def _price(pricing: Any) -> tuple[float, float] | None:
    """Dollars for a million tokens, from a router's dollars for one token."""
    if not isinstance(pricing, Mapping):
        return None
    read, written = dollars(pricing.get("prompt")), dollars(pricing.get("completion"))
    return None if read is None or written is None else (read * 1e6, written * 1e6)


def _choose(model: str, listed: list[str]) -> str:
    short = {name.rpartition("/")[2].lower(): name for name in listed}
    near = difflib.get_close_matches(model.rpartition("/")[2].lower(), short, n=_NEAREST, cutoff=0.3)
    names = [short[name] for name in near] or sorted(listed)[:_NEAREST]
    return f"set APEAGENT_TEACHER_MODEL, nearest names: {', '.join(names)}" if names else "the server lists no model"
