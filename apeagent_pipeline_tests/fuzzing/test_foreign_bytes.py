"""Whatever stands in foreign bytes, a reader gives a value or its own error.

A few seconds of it run with the other tests. For as long as you like, with new examples every time::

    pytest --hypothesis-profile=fuzz apeagent_pipeline_tests/fuzzing
"""

import io
import json
import math
import os
import random
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx2
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.artifacts.manifest import Manifest
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive
from apeagent_pipeline.chain.collector import Collector
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.embedded import EmbeddedChainProvider
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA, LogError, check_raw_swaps, decode_swap_logs
from apeagent_pipeline.chain.rpc import Endpoint, MaskedHTTPProvider, RateLimiter, RpcClient
from apeagent_pipeline.chain.rpc_errors import RpcError
from apeagent_pipeline.chain.source import open_swap_source
from apeagent_pipeline.distillation.answer_cache import AnswerCache
from apeagent_pipeline.distillation.chain_of_draft import AnswerError, DraftAnswer, parse_answer, render_answer
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig
from apeagent_pipeline.distillation.teachers.teacher import TeacherAnswer, TeacherError
from apeagent_pipeline.distillation.verification import VerificationConfig, verify
from apeagent_pipeline.evaluation.own_prompts import PromptsFileError, read_prompts
from apeagent_pipeline.settings import Settings, SettingsError, load_settings, mask_url, show_settings
from apeagent_pipeline_tests.distillation.scripted_server import GOOD, ScriptedServer, completion

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too, which JSON can write
ODD = st.sampled_from(
    [None, True, -1, 0, 1 << 64, 10**400, 0.5, math.nan, math.inf, "", "0x", "0x" + "f" * 70, "\x00", "\ud800", [], {}]
)
JSON = st.recursive(
    ODD | ANY_TEXT | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=8,
)
DEEP = b"[" * 100_000
FEWER = settings(max_examples=settings().max_examples // 5)  # of what takes a tenth of a second


def changed(document: Any) -> st.SearchStrategy[Any]:
    """The JSON document with one or several of its parts, at any depth, replaced by something else or left out."""

    def change(start: int, values: list[Any]) -> Any:
        dice = random.Random(start)
        out = json.loads(json.dumps(document))
        for value in values:
            inside: Any = out
            while True:
                keys = list(inside) if isinstance(inside, dict) else range(len(inside))
                if not keys:
                    break
                key = dice.choice(keys)
                if isinstance(inside[key], dict | list) and inside[key] and dice.random() < 0.8:
                    inside = inside[key]
                    continue
                if dice.random() < 0.1:
                    del inside[key]
                else:
                    inside[key] = value
                break
        return out

    return st.builds(change, st.integers(0, 1 << 32), st.lists(JSON, min_size=1, max_size=3))


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some of them overwritten, removed or doubled."""

    def damage(edits: list[tuple[int, int, bytes]]) -> bytes:
        out = content
        for at, cut, put in edits:
            begin = at % (len(out) + 1)
            out = out[:begin] + put + out[begin + cut :]
        return out

    edit = st.tuples(st.integers(0, 1 << 24), st.integers(0, 64), st.binary(max_size=16))
    return st.builds(damage, st.lists(edit, min_size=1, max_size=6))


@pytest.fixture(scope="module")
def chain() -> EmbeddedChainProvider:
    return EmbeddedChainProvider(42, now=datetime(2025, 1, 26, 12, tzinfo=UTC).timestamp)


def _logs() -> list[dict[str, Any]]:
    provider = EmbeddedChainProvider(42, now=datetime(2025, 1, 26, 12, tzinfo=UTC).timestamp)
    first, last = Collector(RpcClient([provider]), BASE_ETH_USDC).block_range(FIRST_DAY)
    logs: list[dict[str, Any]] = provider.make_request(
        "eth_getLogs", [{"fromBlock": hex(first), "toBlock": hex(last)}]
    )["result"]
    return logs[:3]


LOGS = _logs()
SWAPS = decode_swap_logs(LOGS, BASE_ETH_USDC)


@given(changed(LOGS) | JSON.map(lambda value: [value]))
def test_logs_of_a_node(logs: Any) -> None:
    try:
        table = decode_swap_logs(logs, BASE_ETH_USDC)
    except LogError as error:
        assert len(str(error)) < 2_000
        return
    assert table.schema == RAW_SWAPS_SCHEMA
    try:
        check_raw_swaps(table.sort("block_number", "log_index"), FIRST_DAY)
    except ChainError:
        return


@given(
    st.integers(200, 599),
    st.sampled_from(["Retry-After", "Content-Type", "Content-Encoding", "Location", "X"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
    | st.sampled_from(["nan", "inf", "-1", "1e999", "Mon, 01 Jan 0001 00:00:00 -0000", "gzip", "text/html; charset=x"]),
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | changed({"jsonrpc": "2.0", "id": 1, "result": "0x1"}).map(lambda value: json.dumps(value).encode())
    | changed([{"jsonrpc": "2.0", "id": i, "error": {"code": 1, "message": "m"}} for i in (1, 2)]).map(
        lambda value: json.dumps(value).encode()
    ),
    st.booleans(),
)
@example(200, "X", "", b'[{"id": [], "error": {"code": 1}}, {"id": {}, "error": {"code": 1}}]', True)
@example(200, "X", "", DEEP, False)
@example(200, "X", "", b"1" * 5000, False)
@example(301, "Location", "\x80", b"", False)
def test_http_answers_of_a_node(
    server: ScriptedServer, status: int, header: str, value: str, body: bytes, batch: bool
) -> None:
    server.script = lambda number, asked: (status, {header: value}, body, 0.0)
    endpoint = Endpoint(MaskedHTTPProvider(SecretStr(server.url), "RPC endpoint 1"), RateLimiter(0))
    calls = [("eth_chainId", list[Any]())] * (2 if batch else 1)
    try:
        assert len(endpoint.results(calls)) == len(calls)
    except RpcError as error:
        assert error.retry_after is None or error.retry_after >= 0
        assert len(str(error)) < 2_000


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    running = ScriptedServer(lambda number, body: (200, {}, b"", 0.0))
    yield running
    running.server.shutdown()
    running.server.server_close()


class LyingChain:
    """A chain of which one answer in so many is replaced."""

    def __init__(self, chain: EmbeddedChainProvider, lies: Iterator[Any], seed: int) -> None:
        self.chain = chain
        self.lies = lies
        self.dice = random.Random(seed)

    def make_request(self, method: str, params: list[Any]) -> Any:
        answer = self.chain.make_request(method, params)
        if self.dice.random() < 0.2:
            lie = next(self.lies, None)
            result = answer.get("result")
            if isinstance(result, dict) and self.dice.random() < 0.8:
                return {**answer, "result": {**result, self.dice.choice(list(result)): lie}}
            if isinstance(result, list) and result and self.dice.random() < 0.8:
                log = {**result[0], self.dice.choice(list(result[0])): lie}
                return {**answer, "result": [log, *result[1:]]}
            return {**answer, self.dice.choice(["result", "error"]): lie}
        return answer

    def make_batch_request(self, requests: list[Any]) -> Any:
        return [self.make_request(*each) for each in requests]


@given(st.lists(JSON, max_size=6), st.integers(0, 1 << 32))
@FEWER
def test_days_of_a_lying_node(chain: EmbeddedChainProvider, lies: list[Any], seed: int) -> None:
    lying = LyingChain(chain, iter(lies * 2), seed)
    collector = Collector(RpcClient([lying], attempts=3, sleep=lambda seconds: None), BASE_ETH_USDC)
    collector.config = collector.config.model_copy(update={"transactions": bool(seed % 2), "parallel": 1})
    try:
        found = collector.read_day(FIRST_DAY)
    except ChainError as error:
        assert len(str(error)) < 4_000
        return
    check_raw_swaps(found, FIRST_DAY)


def _csv() -> bytes:
    return SWAPS.with_columns(pl.col("block_timestamp").dt.epoch("s")).write_csv().encode()


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def _read_archive(suffix: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"swaps{suffix}"
        path.write_bytes(content)
        try:
            found = SwapArchive(path, BASE_ETH_USDC).swaps
        except ArchiveError as error:
            assert len(str(error)) < 4_000
            return
        assert found.schema == RAW_SWAPS_SCHEMA
        assert found.select(pl.struct("block_number", "log_index").is_unique().all()).item()


@given(damaged(_csv()) | st.binary(max_size=200))
@example(b"\xef\xbb\xbf")
@example(_csv().replace(b"chain_id", b"_line"))
@example(b"\xfd7zXZ" + b"broken" * 9)
@example(b"\x1f\x8b" + b"broken" * 9)
@example(b"\x28\xb5\x2f\xfd" + b"broken" * 9)
@example(b"BZh" + b"broken" * 9)
def test_csv_archives(content: bytes) -> None:
    _read_archive(".csv", content)


@given(damaged(_parquet(SWAPS)) | st.binary(max_size=200))
@example(b"\xfd7zXZ" + b"broken" * 9)
@example(b"\x1f\x8b" + b"broken" * 9)
@example(b"\x28\xb5\x2f\xfd" + b"broken" * 9)
@example(b"BZh" + b"broken" * 9)
def test_parquet_archives(content: bytes) -> None:
    _read_archive(".parquet", content)


COLUMN_TYPES = [
    *[pl.Int8, pl.UInt64, pl.Int128, pl.Float32, pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Duration("ms")],
    *[pl.Datetime("ns"), pl.Datetime("ms", "Asia/Tokyo"), pl.Decimal(38, 4), pl.Categorical, pl.Enum(["0x"]), pl.Null],
    *[pl.List(pl.Int8), pl.Array(pl.Int8, 2), pl.Struct({"a": pl.String})],
]


@given(st.sampled_from(list(RAW_SWAPS_SCHEMA)), st.sampled_from(COLUMN_TYPES), st.booleans())
def test_parquet_archives_with_columns_of_any_type(name: str, kind: Any, doubled: bool) -> None:
    column = pl.Series(name, [None] * SWAPS.height, kind)
    if doubled:
        column = column.extend_constant(None, SWAPS.height)
        _read_archive(".parquet", _parquet(pl.concat([SWAPS, SWAPS]).with_columns(column)))
    else:
        _read_archive(".parquet", _parquet(SWAPS.with_columns(column)))


ANSWER_PARTS = st.sampled_from(
    [
        *[
            "####",
            "#",
            "\n",
            "\n####\n",
            "BUY",
            "SELL 2.5 ETH",
            "HOLD",
            "APE OUT",
            "APE NEUTRAL",
            " 0.1 ",
            "ETH",
            "USDC",
        ],
        *["<think>", "</think>", "**", "`", "1,000", "-", "%", "9" * 400, "1e999", ".", "٣", "\u2028", "trend up", "$"],
    ]
)
ANSWERS = st.lists(ANSWER_PARTS | ANY_TEXT, max_size=12).map("".join)
ROW = {
    "price": 2500.0,
    "change_bps": 12.0,
    "eth": 1.0,
    "usdc": 100.0,
    "trend": "up strong",
    "volatility": "calm",
    "portfolio": "all ETH",
}


@given(ANSWERS)
@example("<think>" * 20_000)
@example("x\n####\nBUY " + "1" * 100_000 + " ETH")
@example("-" * 100_000 + "\n####\nSELL " + "0" * 100_000)
def test_answers_of_a_teacher(text: str) -> None:
    try:
        answer = parse_answer(text)
    except AnswerError as error:
        assert len(error.detail) <= 80
        return
    assert answer == DraftAnswer(answer.drafts, answer.side, answer.amount, answer.asset)
    reason = verify(answer, ROW, VerificationConfig())
    assert reason is None or reason.replace("_", "").isalpha()
    render_answer(answer)


@given(
    st.lists(
        changed(completion()).map(lambda document: json.dumps(document).encode())
        | JSON.map(lambda value: json.dumps(value).encode())
        | st.binary(max_size=60),
        min_size=8,
        max_size=8,
    )
)
@example([DEEP] * 8)
@FEWER
def test_completions_of_a_teachers_server(server: ScriptedServer, documents: list[bytes]) -> None:
    server.script = lambda number, body: (200, {}, documents[int(body["messages"][1]["content"])], 0.0)
    config = OpenAITeacherConfig(concurrency=8, retries=0, price=(1.0, 1.0), timeout_s=20)
    teacher = OpenAITeacher(server.url, "m", None, config)
    prompts = [{"prompt_id": str(number), "prompt": str(number)} for number in range(8)]
    with tempfile.TemporaryFile() as kept:
        cache = AnswerCache(teacher, kept, kept)
        answers = list(teacher.answer(prompts, 1, lambda answer: cache.keep(answer.prompt_id, 1, answer)))
        kept.seek(0)
        again = AnswerCache(teacher, kept)
        for answer in answers:
            check_answer(answer)
            if answer.finish_reason not in ("failed", "lost"):
                assert again.get(answer.prompt_id, 1) == answer
    assert sorted(answer.prompt_id for answer in answers) == [str(number) for number in range(8)]


def check_answer(answer: TeacherAnswer) -> None:
    """What everything after it relies on: text that can be written anywhere, and counts that can be added up."""
    assert isinstance(answer.text, str)
    for text in (answer.text, answer.finish_reason, answer.reasoning or "", answer.error or ""):
        text.encode()
    for tokens in (answer.prompt_tokens, answer.completion_tokens):
        assert tokens is None or (type(tokens) is int and 0 <= tokens < 1 << 53)
    assert answer.cost_usd is None or (math.isfinite(answer.cost_usd) and answer.cost_usd >= 0)


ASKED: Any = SimpleNamespace(name="t", identity={}, limits={}, deterministic=False)


def _line() -> bytes:
    with tempfile.TemporaryFile() as kept:
        AnswerCache(ASKED, kept, kept).keep("p", 1, TeacherAnswer("1", GOOD, "stop", 1, 1, 0.1))
        kept.seek(0)
        return kept.read()


@given(
    changed(json.loads(_line())).map(lambda entry: json.dumps(entry).encode() + b"\n")
    | damaged(_line() * 3)
    | JSON.map(lambda value: json.dumps(value).encode() + b"\n")
)
@example(DEEP + b"\n")
def test_lines_of_the_answer_cache(content: bytes) -> None:
    try:
        cache = AnswerCache(ASKED, io.BytesIO(content))
    except ValueError as error:
        assert "is not a cached answer" in str(error)
        return
    answer = cache.get("p", 1)
    if answer is not None:
        check_answer(answer)


def _manifest() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        Manifest(
            asset="a", data_version="d", code_version="1", files={"x": {"size": 1, "sha256": "0" * 64}}
        ).model_dump_json()
    )
    return document


@given(
    changed(_manifest()).map(lambda document: json.dumps(document).encode())
    | damaged(json.dumps(_manifest()).encode())
    | ANY_TEXT.map(lambda name: json.dumps({**_manifest(), "files": {name: {"size": 1, "sha256": "0"}}}).encode())
    | st.binary(max_size=60)
)
@example(DEEP)
def test_manifests(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(f"{folder}/store", Path(folder) / "cache")
        store.publish_bytes({"x": b"1"}, asset="a", code_version="1")
        Path(f"{folder}/store/a/manifest.json").write_bytes(content)
        manifest = store.manifest("a")
        assert manifest is None or set(manifest.files) <= {"x"}


@given(
    st.sampled_from(["p.txt", "p.jsonl"]),
    damaged(b'{"prompt": "what?", "side": "BUY"}\n{"prompt": "why?", "kind": "control"}\n')
    | changed({"prompt": "x", "kind": "trading", "side": "HOLD"}).map(lambda row: json.dumps(row).encode())
    | ANY_TEXT.map(lambda text: json.dumps({"prompt": text}).encode()),
)
@example("p.jsonl", DEEP)
def test_files_of_own_prompts(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            prompts = read_prompts(path)
        except PromptsFileError as error:
            assert len(str(error)) < 1_000
            return
    for prompt in prompts:
        assert prompt.text.encode()
        assert prompt.kind in {"trading", "control"}


WORDS = "nan inf -1 1e999 http://[ http://a:b@[::1 https://h:99999/k //x {} a=1/2 a=9/inf 0,0,0,0,0 full 25:00 s3://b"
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30) | st.sampled_from(
    [*WORDS.split(), "9" * 50, "9" * 5000, "ETH:18,USDC:6", "ETH:999999999999,USDC:6", "0x" + "0" * 64]
)


SECRET_SETTINGS = {"rpc_urls", "teacher_api_key", "alert_webhook"}
MARK = "never-shown"


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), VALUES, max_size=4))
@example({"rpc_urls": "http://["})
def test_values_of_settings(values: dict[str, str]) -> None:
    environment = {
        f"APEAGENT_{name.upper()}": value + (MARK if name in SECRET_SETTINGS else "") for name, value in values.items()
    }
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, environment):
        before = Path.cwd()
        os.chdir(folder)
        try:
            loaded = load_settings()
            shown = show_settings(loaded)
            assert all(MARK not in row.value for row in shown if row.variable != "APEAGENT_RPC_URLS")
            open_swap_source(loaded)
        except SettingsError as error:
            assert MARK not in str(error)
        finally:
            os.chdir(before)


@given(VALUES, VALUES)
def test_addresses_of_a_teacher(url: str, model: str) -> None:
    assert MARK not in mask_url(f"https://h/{MARK}{url}")
    try:
        OpenAITeacher(url, model, "k")
    except TeacherError:
        return
    httpx2.URL(url)
