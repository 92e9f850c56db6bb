"""The HTTP server: OpenAI's chat completions and Ollama's chat, on 127.0.0.1, in front of one engine.

Every answer passes the check. A whole answer carries the header ``X-Apeagent-Check``: ``unchanged``, ``changed`` or
``refused``, then a sentence for each change. In a stream the headers leave before the answer exists: there the field
``apeagent`` of the last piece says the same. A client's sampling options are ignored: answers are the likeliest ones.
"""

import asyncio
import datetime as dt
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import closing
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from apeagent_pipeline.distillation.token_guess import token_guess
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.serving.answering import Reply, answer
from apeagent_pipeline.serving.dialects import DIALECTS, Dialect
from apeagent_pipeline.serving.engines import CONTEXT_TOKENS, Engine
from apeagent_pipeline.serving.requests import MODEL, ChatRequest, RequestError, read_request

HOST = "127.0.0.1"
_NAMES = [f"{MODEL}:latest", *(f"{MODEL}:{dialect}" for dialect in DIALECTS)]


class ServerError(ApeagentError, OSError):
    """The server cannot listen."""


def build_app(engine: Engine, dialect: Dialect | None = None, size: int = 0) -> Starlette:
    """The application.

    Args:
        engine: What generates.
        dialect: Form of the answers, unless the model's tag asks for another; None: the question's own.
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
        exception_handlers=dict.fromkeys((ApeagentError, HTTPException, ClientDisconnect, Exception), _refuse),
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

    async def _reply_to(self, request: ChatRequest) -> Reply:
        request.refuse_what_is_not_given()
        dialect = request.dialect or self._dialect
        # In a thread: reading a long question takes a while.
        return await run_in_threadpool(
            answer, self._engine, request.chat(), dialect, request.longest, stops=request.stops
        )

    async def openai_chat(self, http: Request) -> Response:
        """``POST /v1/chat/completions``."""
        request = await read_request(http)
        reply, begin = await self._reply_to(request), _begin(request)
        if request.stream:
            return await _streamed(_openai_pieces(reply, begin, request), _openai_error, "text/event-stream")
        text = await _whole(http, reply)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reply.finish}
        more = {"usage": _usage(request, reply), "apeagent": _told(reply)}
        body = {**begin, "object": "chat.completion", "choices": [choice], **more}
        return JSONResponse(body, headers=_headers(reply))

    async def ollama_chat(self, http: Request) -> Response:
        """``POST /api/chat``."""
        request = await read_request(http)
        if not request.messages:  # Ollama's clients load a model this way
            empty = {"role": "assistant", "content": ""}
            return JSONResponse({**_named(request), "message": empty, "done": True, "done_reason": "load"})
        reply = await self._reply_to(request)
        if request.stream is not False:
            return await _streamed(_ollama_pieces(reply, request), _ollama_error, "application/x-ndjson")
        started = time.monotonic_ns()
        text = await _whole(http, reply)
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


async def _refuse(http: Request, error: Exception) -> Response:
    """An answer in the interface's own form for whatever went wrong; starlette prints what was not foreseen."""
    if isinstance(error, RequestError):
        status = error.status
    elif isinstance(error, HTTPException):
        status = error.status_code
    else:
        status = 400 if isinstance(error, ApeagentError | ClientDisconnect) else 500
    said = f"{http.method} {http.url.path}: {error.detail}" if isinstance(error, HTTPException) else _said(error)
    form = _ollama_error if http.url.path.startswith("/api/") else _openai_error
    return JSONResponse(form(said, status), status_code=status, headers=getattr(error, "headers", None))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ApeagentError) else f"the answer failed ({type(error).__name__})"


def _openai_error(said: str, status: int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": said, "type": kind, "param": None, "code": None}}


def _ollama_error(said: str, status: int) -> dict[str, Any]:
    return {"error": said}


async def _whole(http: Request, reply: Reply) -> str:
    """The whole answer; the engine is freed as soon as the client is gone."""
    gone = threading.Event()

    def collect() -> None:
        with closing(iter(reply)) as pieces:
            for _ in pieces:
                if gone.is_set():
                    break

    working = asyncio.ensure_future(run_in_threadpool(collect))
    leaving = asyncio.ensure_future(_leaving(http))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        is_gone = not working.done()
    finally:
        gone.set()
        leaving.cancel()
    await working
    if is_gone:
        raise ClientDisconnect
    return reply.text


async def _leaving(http: Request) -> None:
    """Wait until the client is gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _streamed(lines: Generator[str], error_form: Callable[[str, int], dict[str, Any]], kind: str) -> Response:
    """The stream; its first piece is awaited, so that a question which the engine refuses gets an error status.

    A later error is a last line of its own. The engine is freed when the client goes away.
    """
    passed = _passed_on(lines)
    first = await anext(passed)
    begin = "data: " if kind == "text/event-stream" else ""

    async def everything() -> AsyncIterator[str]:
        try:
            if first:
                yield first
            async for line in passed:
                yield line
        except Exception as error:
            yield f"{begin}{json.dumps(error_form(_said(error), 500))}\n\n"
        finally:
            await passed.aclose()

    return StreamingResponse(everything(), media_type=kind)


async def _passed_on(lines: Generator[str]) -> AsyncGenerator[str]:
    """The lines of a generator that one thread runs from its first to its last.

    After the first, empty lines are not passed on: a token that shows nothing costs no change of threads. Closing this
    ends the generator at its next line.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[str | Exception | None] = asyncio.Queue()
    gone = threading.Event()

    def run() -> None:
        end: Exception | None = None
        try:
            with closing(lines):
                for number, line in enumerate(lines):
                    if line or not number:
                        loop.call_soon_threadsafe(arrived.put_nowait, line)
                    if gone.is_set():
                        break
        except Exception as error:
            end = error
        loop.call_soon_threadsafe(arrived.put_nowait, end)

    working = asyncio.ensure_future(run_in_threadpool(run))
    try:
        while (line := await arrived.get()) is not None:
            if isinstance(line, Exception):
                raise line
            yield line
        await working
    finally:
        gone.set()


def _begin(request: ChatRequest) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}


def _usage(request: ChatRequest, reply: Reply) -> dict[str, int]:
    asked = sum(token_guess(message["content"]) for message in request.chat())  # the engines do not say it alike
    return {"prompt_tokens": asked, "completion_tokens": reply.tokens, "total_tokens": asked + reply.tokens}


def _openai_pieces(reply: Reply, begin: dict[str, Any], request: ChatRequest) -> Generator[str]:
    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**begin, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    def event(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
        return chunk([{"index": 0, "delta": delta, "finish_reason": finish}], **more)

    role = {"role": "assistant"}
    for piece in reply:
        yield event({**role, "content": piece}) if piece else ""
        role = {} if piece else role
    yield event({}, reply.finish, apeagent=_told(reply))
    if request.wants_usage:
        yield chunk([], usage=_usage(request, reply))
    yield "data: [DONE]\n\n"


def _ollama_pieces(reply: Reply, request: ChatRequest) -> Generator[str]:
    started = time.monotonic_ns()
    for piece in reply:
        message = {"role": "assistant", "content": piece}
        yield json.dumps({**_named(request), "message": message, "done": False}) + "\n" if piece else ""
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
