"""The HTTP server: OpenAI's chat completions and Ollama's chat, on 127.0.0.1, in front of one engine.

Every answer passes the check. A whole answer carries the header ``X-Apeagent-Check``: ``unchanged``, ``changed`` or
``refused``, then a sentence for each change. In a stream the headers leave before the answer exists: there the field
``apeagent`` of the last piece says the same. A client's sampling options are ignored: answers are the likeliest ones.
"""

import datetime as dt
import json
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from apeagent_pipeline.distillation.token_guess import token_guess
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.serving.answering import Reply, answer
from apeagent_pipeline.serving.dialects import DIALECTS, Dialect
from apeagent_pipeline.serving.engines import CONTEXT_TOKENS, Engine

MODEL = "apeagent"
HOST = "127.0.0.1"
_LONGEST_BODY = 1 << 20
_NAMES = [f"{MODEL}:latest", *(f"{MODEL}:{dialect}" for dialect in DIALECTS)]


class ServerError(ApeagentError, OSError):
    """The server cannot listen."""


class Message(BaseModel):
    """One message of a chat; OpenAI's clients may send its text in parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class ChatRequest(BaseModel):
    """A request of either interface; fields that are not named here are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = MODEL
    messages: list[Message] = []
    stream: bool | None = None
    max_tokens: int | None = Field(None, ge=-2)
    max_completion_tokens: int | None = Field(None, ge=1)
    options: dict[str, Any] = {}
    n: int | None = 1

    @property
    def dialect(self) -> Dialect | None:
        """The dialect that the model's tag asks for, such as ``apeagent:recommendation``; None: the question's own."""
        tag = self.model.rpartition(":")[2]
        return next((dialect for dialect in DIALECTS if dialect == tag), None)

    @property
    def longest(self) -> int | None:
        """Tokens that the client wants at most, or None."""
        wanted = self.max_completion_tokens or self.max_tokens or self.options.get("num_predict")
        return wanted if isinstance(wanted, int) and wanted > 0 else None

    def chat(self) -> list[dict[str, str]]:
        """The messages with their text."""
        return [{"role": message.role, "content": message.text} for message in self.messages]


class _BadRequestError(ValueError):
    def __init__(self, message: str, status: int = 400) -> None:
        self.status = status
        super().__init__(message)


def build_app(engine: Engine, dialect: Dialect | None = None, size: int = 0) -> Starlette:
    """The application.

    Args:
        engine: What generates.
        dialect: In which form every answer is said, unless the model's tag asks for another; None: the question's own.
        size: Bytes of the model, which Ollama's clients show.
    """
    model = _Model(engine, dialect, size)
    return Starlette(
        routes=[
            Route("/", _alive, methods=["GET", "HEAD"]),
            Route("/v1/models", _models),
            Route("/v1/chat/completions", model.openai_chat, methods=["POST"]),
            Route("/api/version", _version),
            Route("/api/tags", model.tags),
            Route("/api/show", model.show, methods=["POST"]),
            Route("/api/chat", model.ollama_chat, methods=["POST"]),
        ],
        # A page in the browser must not reach the server under a name of its own.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers={_BadRequestError: _refuse, ApeagentError: _refuse},
    )


class _Model:
    """The endpoints that ask the engine or describe it."""

    def __init__(self, engine: Engine, dialect: Dialect | None, size: int) -> None:
        self._engine, self._dialect, self._size = engine, dialect, size
        self._began = dt.datetime.now(dt.UTC).isoformat()
        self._details = {
            "parent_model": "", "format": "gguf" if engine.name == "llama.cpp" else "safetensors", "family": "llama",
            "families": ["llama"], "parameter_size": "", "quantization_level": "",
        }  # fmt: skip

    def _reply_to(self, request: ChatRequest) -> Reply:
        if not request.messages or request.messages[-1].role != "user" or not request.messages[-1].text.strip():
            raise _BadRequestError("the last message must be a user's, with a text")
        if request.n not in (None, 1):
            raise _BadRequestError(f"n={request.n}: one answer is given; send the request again for another")
        return answer(self._engine, request.chat(), request.dialect or self._dialect, request.longest)

    async def openai_chat(self, http: Request) -> Response:
        """``POST /v1/chat/completions``."""
        request = await _read(http)
        reply, begin = self._reply_to(request), _begin(request)
        if request.stream:
            return await _streamed(reply, _openai_pieces(reply, begin), "text/event-stream")
        text = await run_in_threadpool(reply.whole)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reply.finish}
        asked = sum(token_guess(message["content"]) for message in request.chat())  # the engines do not say it alike
        usage = {"prompt_tokens": asked, "completion_tokens": reply.tokens, "total_tokens": asked + reply.tokens}
        body = {**begin, "object": "chat.completion", "choices": [choice], "usage": usage, "apeagent": _told(reply)}
        return JSONResponse(body, headers=_headers(reply))

    async def ollama_chat(self, http: Request) -> Response:
        """``POST /api/chat``."""
        request = await _read(http)
        if not request.messages:  # Ollama's clients load a model this way
            empty = {"role": "assistant", "content": ""}
            return JSONResponse({**_named(request), "message": empty, "done": True, "done_reason": "load"})
        reply = self._reply_to(request)
        if request.stream is not False:
            return await _streamed(reply, _ollama_pieces(reply, request), "application/x-ndjson")
        started = time.monotonic_ns()
        text = await run_in_threadpool(reply.whole)
        message = {"role": "assistant", "content": text}
        return JSONResponse(
            {**_named(request), "message": message, **_ollama_end(reply, started)}, headers=_headers(reply)
        )

    async def tags(self, _: Request) -> Response:
        """``GET /api/tags``."""
        models = [
            {
                "name": name, "model": name, "modified_at": self._began, "size": self._size, "digest": "",
                "details": self._details,
            }
            for name in _NAMES
        ]  # fmt: skip
        return JSONResponse({"models": models})

    async def show(self, _: Request) -> Response:
        """``POST /api/show``."""
        return JSONResponse(
            {
                "modelfile": "", "parameters": "temperature 0\nrepeat_penalty 1.0", "template": "",
                "details": self._details, "capabilities": ["completion"], "modified_at": self._began,
                "model_info": {"general.architecture": "llama", "llama.context_length": CONTEXT_TOKENS},
            }
        )  # fmt: skip


async def _models(_: Request) -> Response:
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "apeagent"} for name in [MODEL, *_NAMES]]
    return JSONResponse({"object": "list", "data": data})


async def _alive(_: Request) -> Response:
    return PlainTextResponse("Ollama is running")  # clients of Ollama look for this text


async def _version(_: Request) -> Response:
    return JSONResponse({"version": "0.1.0"})


def run(app: Starlette, listening: socket.socket) -> None:
    """Serve on a socket of ``listen`` until the process is interrupted."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """A socket bound to a port of 127.0.0.1.

    Raises:
        ServerError: the port is in use.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)  # from now on clients wait instead of being refused
    except OSError as error:
        listening.close()
        raise ServerError(
            f"port {port} of {HOST} cannot be used ({error.strerror}); Ollama itself uses 11434. Give another --port"
        ) from None
    return listening


async def _read(http: Request) -> ChatRequest:
    body = await http.body()
    if len(body) > _LONGEST_BODY:
        raise _BadRequestError(f"the request has {len(body):,} bytes; at most {_LONGEST_BODY:,} are read", 413)
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "body"
        raise _BadRequestError(f"{where}: {problem['msg']}") from None


async def _refuse(http: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, _BadRequestError) else 400
    if http.url.path.startswith("/api/"):
        return JSONResponse({"error": str(error)}, status_code=status)
    told = {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": told}, status_code=status)


async def _streamed(reply: Reply, lines: Iterator[str], kind: str) -> Response:
    """The stream; its first line is awaited, so that a question which the engine refuses gets an error status."""
    first = await run_in_threadpool(next, lines)

    def everything() -> Iterator[str]:
        yield first
        yield from lines

    return StreamingResponse(everything(), media_type=kind)


def _begin(request: ChatRequest) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}


def _openai_pieces(reply: Reply, begin: dict[str, Any]) -> Iterator[str]:
    def event(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**begin, 'object': 'chat.completion.chunk', 'choices': [choice], **more})}\n\n"

    role = {"role": "assistant"}
    for piece in reply:
        yield event({**role, "content": piece})
        role = {}
    yield event({}, reply.finish, apeagent=_told(reply))
    yield "data: [DONE]\n\n"


def _ollama_pieces(reply: Reply, request: ChatRequest) -> Iterator[str]:
    started = time.monotonic_ns()
    for piece in reply:
        message = {"role": "assistant", "content": piece}
        yield json.dumps({**_named(request), "message": message, "done": False}) + "\n"
    last = {"message": {"role": "assistant", "content": ""}, **_ollama_end(reply, started)}
    yield json.dumps({**_named(request), **last}) + "\n"


def _named(request: ChatRequest) -> dict[str, str]:
    return {"model": request.model, "created_at": dt.datetime.now(dt.UTC).isoformat()}


def _ollama_end(reply: Reply, started: int) -> dict[str, Any]:
    took = time.monotonic_ns() - started
    return {
        "done": True, "done_reason": reply.finish, "total_duration": took, "load_duration": 0, "prompt_eval_count": 0,
        "prompt_eval_duration": 0, "eval_count": reply.tokens, "eval_duration": took, "apeagent": _told(reply),
    }  # fmt: skip


def _told(reply: Reply) -> dict[str, Any]:
    return {"changes": list(reply.changes), "refused": reply.refused, "translated": reply.translated}


def _headers(reply: Reply) -> dict[str, str]:
    return {"X-Apeagent-Check": reply.verdict}
