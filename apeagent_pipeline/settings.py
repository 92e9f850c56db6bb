"""The one place that reads the environment.

Every setting is an ``APEAGENT_*`` variable, or a line of a ``.env`` file in the current folder. ``apeagent config``
shows them all with their source and with secrets masked.
"""

import datetime as dt
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from apeagent_pipeline.errors import ApeagentError

PREFIX = "APEAGENT_"
SMOLLM2 = "smollm2-135m-instruct"
LAUNCHED_WITH = "APEAGENT_LAUNCHED_WITH"
"""Variable in which a run on another machine is told the settings of the one that launched it, secrets masked."""

ProfileName = Literal["demo", "laptop", "full"]
_FULL = {
    "teacher": "openai",
    "teacher_concurrency": 64,
    "teacher_max_requests": 16_000,  # twice what 6,800 prompts are expected to need
    "teacher_max_total_tokens": 40_000_000,
    "student": "Qwen/Qwen2.5-3B",
    "eval_prompts": 300,
    "retraining": "weekly",
}


class SettingsError(ApeagentError, ValueError):
    """A setting is wrong; the message names the variable, its value and the remedy."""


class Settings(BaseSettings):
    """Everything a user can set. The field descriptions are what ``apeagent config`` prints."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    profile: ProfileName = Field(
        "demo",
        description="demo: about twenty minutes on two cores; laptop: about forty; full: the document's sizes, a GPU",
    )
    home: Path = Field(Path(".apeagent"), description="Folder of artifacts, Dagster instance and caches")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Device of GAN and student on this machine; auto: CUDA, else Apple's MPS, else the CPU"
    )
    storage: str = Field(
        "",
        description="Folder or fsspec URL of the artifacts, such as s3://bucket/prefix; empty: below home",
    )
    postgres_url: SecretStr | None = Field(
        None, description="postgresql://USER:PASSWORD@HOST:PORT/NAME for Dagster's history; none: SQLite below home"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="Where UI and daemon execute runs: on this machine, or on a Ray cluster"
    )
    ray_address: str = Field(
        "http://127.0.0.1:8265", description="For engine=ray: address of the cluster's dashboard and job API"
    )
    rpc_urls: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Comma-separated JSON-RPC endpoints of the chain; none: the embedded chain"
    )
    rpc_range_blocks: int = Field(
        5_000, ge=1, le=100_000, description="Largest number of blocks in one request for logs"
    )
    rpc_requests_per_second: float = Field(
        25.0, ge=0, description="JSON-RPC calls a second to each endpoint; 0: no limit"
    )
    rpc_finality_depth: int = Field(
        1_800,
        ge=1,
        description="Blocks after which a block counts as final, for nodes without finalized and safe blocks",
    )
    rpc_transactions: bool = Field(
        False, description="Also request the transaction of each swap, to fill tx_from and tx_to"
    )
    swaps_archive: Path | None = Field(
        None, description="CSV, Parquet or JSON file, or a folder of them, from which swaps are read instead of a chain"
    )
    swaps_signs: Literal["swapper", "pool"] = Field(
        "swapper", description="Side whose signs the archive's amounts have; pool: the signs are flipped"
    )
    chain_id: int = Field(8453, ge=1, description="Id of the pool's chain; 8453: Base")
    pool_manager: str = Field("", description="Uniswap V4 PoolManager contract; empty: that of Base")
    pool_id: str = Field("", description="Pool id (32 bytes, hex); empty: that of the pool key, or ETH-USDC on Base")
    pool_key: str = Field(
        "", description="currency0,currency1,fee,tickSpacing,hooks of the pool; empty: the node is asked"
    )
    pool_tokens: str = Field(
        "", description="symbol:decimals of both tokens, such as ETH:18,USDC:6; empty: the node is asked"
    )
    teacher: Literal["rules", "openai"] = Field(
        "rules", description="rules: the embedded policy; openai: any OpenAI-compatible server"
    )
    teacher_base_url: str = Field(
        "https://openrouter.ai/api/v1",
        repr=False,
        description="For teacher=openai: base URL of the server; shown without its path",
    )
    teacher_model: str = Field("qwen/qwq-32b", description="For teacher=openai: name of the model")
    teacher_api_key: SecretStr | None = Field(None, description="For teacher=openai: API key")
    teacher_max_tokens: int = Field(
        8192, ge=1, description="Largest number of tokens in an answer; reasoning models need thousands"
    )
    teacher_concurrency: int = Field(16, ge=1, description="Largest number of requests to the teacher at the same time")
    teacher_requests_per_minute: float = Field(
        0.0, ge=0, description="Largest number of requests to the teacher a minute; 0: no limit"
    )
    teacher_timeout_s: float = Field(
        300.0, gt=0, description="Longest wait for an answer, or for the next piece of a streamed one, in seconds"
    )
    teacher_patience_s: float = Field(
        900.0, gt=0, description="Longest time that one prompt waits for a busy or broken server, in seconds"
    )
    teacher_stream: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Stream answers, so that a slow one does not time out; auto: for reasoning models only",
    )
    teacher_structured: bool = Field(
        False, description="Ask the server to enforce the form of an answer (JSON schema), where it can"
    )
    teacher_batch: bool = Field(
        False, description="Ask in batches, at about half the price and within a day, where the server offers them"
    )
    teacher_prices: Annotated[dict[str, tuple[float, float]], NoDecode] = Field(
        {},
        description="model=READ/WRITTEN in US dollars per million tokens, comma-separated; empty: the server's prices",
    )
    teacher_max_requests: int = Field(
        0, ge=0, description="Largest number of requests to the teacher in one run; 0: no limit"
    )
    teacher_max_total_tokens: int = Field(
        0, ge=0, description="Tokens after which a run stops asking the teacher; 0: no limit"
    )
    teacher_max_cost_usd: float = Field(
        0.0, ge=0, description="Cost in US dollars after which a run stops asking the teacher; 0: no limit"
    )
    teacher_daily_requests: int = Field(
        0, ge=0, description="Largest number of requests to the teacher on one UTC day; 0: no limit"
    )
    teacher_daily_tokens: int = Field(
        0, ge=0, description="Largest number of the teacher's tokens on one UTC day; 0: no limit"
    )
    retraining: Literal["on_change", "weekly", "manual"] = Field(
        "on_change",
        description="When the daemon rebuilds training windows, GAN, traces and adapter after changed data",
    )
    nightly_at: dt.time = Field(dt.time(2), description="Time of the nightly re-sync, UTC")
    nightly_recheck_days: int = Field(3, ge=0, description="Days before yesterday that the nightly re-sync reads again")
    keep_logs_days: int = Field(
        90, ge=0, description="Days after which the daemon deletes the logs of a run, but not its artifacts; 0: never"
    )
    alert_webhook: SecretStr | None = Field(
        None, description="Slack-compatible webhook that gets a message for each failed run and each warning of a check"
    )
    ui_url: str = Field(
        "http://127.0.0.1:3000",
        description="Address of the UI in the links of alerts; `apeagent ui` sets its own",
    )
    student: str = Field(SMOLLM2, description="Base model: the embedded one, a Hugging Face id or a folder")
    second_stage: Literal["off", "grpo"] = Field(
        "off",
        description="grpo: the adapter is trained further on computed rewards, and evaluated beside the first stage",
    )
    eval_prompts: int = Field(
        100, ge=1, description="Number of trading prompts, and of controls, in the canary evaluation"
    )
    seed: int = Field(42, ge=0, lt=1 << 31, description="Seed of everything random")

    @field_validator("rpc_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("teacher_prices", mode="before")
    @classmethod
    def _read_prices(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        prices = {}
        for entry in filter(None, map(str.strip, value.split(","))):
            found = re.fullmatch(r"(.+)=(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", entry)
            if not found:
                raise ValueError(f"{entry!r} is not of the form qwen/qwq-32b=0.15/0.40 (dollars for a million tokens)")
            prices[found[1]] = (found[2], found[3])
        return prices

    @field_validator("swaps_archive", "teacher_api_key", "alert_webhook", "postgres_url", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("storage")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if urlsplit(value).password is not None:
            raise ValueError(
                "a password in the address would be visible wherever the address is shown; set the variables of the "
                "store instead, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return value

    @field_validator("postgres_url")
    @classmethod
    def _name_the_driver(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        scheme, _, address = value.get_secret_value().partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg2") or not address:
            raise ValueError("expected postgresql://USER:PASSWORD@HOST:PORT/NAME")
        # Without a driver SQLAlchemy would take psycopg 3; dagster-postgres brings psycopg2.
        return SecretStr(f"postgresql+psycopg2://{address}")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_profile(cls, values: dict[str, object]) -> dict[str, object]:
        if values.get("profile") == "full":
            return {**_FULL, **values}
        return values

    @property
    def storage_url(self) -> str:
        """Folder or fsspec URL of all artifacts; ``{home}/storage`` unless set."""
        return self.storage or str(self.home.absolute() / "storage")


def load_settings() -> Settings:
    """Read the environment and ``.env``.

    Raises:
        SettingsError: naming each wrong variable, its value (unless secret) and what is allowed; or the run was
            launched by a machine with other settings.
    """
    try:
        settings = Settings()
        _compare(settings, json.loads(os.environ.get(LAUNCHED_WITH, "{}")))
        return settings
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = PREFIX + str(problem["loc"][0]).upper()
            is_secret = "SecretStr" in str(Settings.model_fields[str(problem["loc"][0])].annotation)
            # An address may hold a password before its @.
            value = "***" if is_secret or "@" in str(problem["input"]) else repr(problem["input"])
            lines.append(f"{name}={value}: {problem['msg']}")
        # "from None": pydantic's own text would repeat the values, secrets included.
        raise SettingsError("; ".join(lines) + ". Run `apeagent config` to see every setting.") from None


def settings_to_share(settings: Settings) -> dict[str, str]:
    """What all machines of a cluster must have in common, secrets masked."""
    own = {"home", "engine", "ray_address", "device", "ui_url"}
    return {PREFIX + name.upper(): _shown(name, settings) for name in Settings.model_fields if name not in own}


def _compare(settings: Settings, launched_with: dict[str, str]) -> None:
    here = settings_to_share(settings)
    wrong = [
        f"{name} is {here.get(name)!r} here and {value!r} there"
        for name, value in launched_with.items()
        if here.get(name) != value
    ]
    if wrong:
        raise SettingsError(
            f"This machine ({platform.node()}) has other settings than the one that launched the run: "
            f"{'; '.join(wrong)}. Set the same {PREFIX}* variables on all machines and restart Ray on this one."
        )


@dataclass(frozen=True)
class ShownSetting:
    """One line of ``apeagent config``."""

    variable: str
    value: str
    source: str
    meaning: str


def show_settings(settings: Settings) -> list[ShownSetting]:
    """Every setting with its value (secrets masked), where it comes from, and what it means."""
    dotenv = Path(".env").read_text().upper() if Path(".env").is_file() else ""
    rows = []
    for name, info in Settings.model_fields.items():
        variable = PREFIX + name.upper()
        if any(key.upper() == variable for key in os.environ):
            source = "environment"
        elif f"{variable}=" in dotenv:
            source = ".env"
        elif settings.profile == "full" and name in _FULL:
            source = "profile full"
        else:
            source = "default"
        rows.append(ShownSetting(variable, _shown(name, settings), source, info.description or ""))
    return rows


def _shown(name: str, settings: Settings) -> str:
    value = getattr(settings, name)
    if name == "storage":
        return settings.storage_url
    if name == "rpc_urls":
        return ", ".join(mask_url(url.get_secret_value()) for url in value)
    if name in {"teacher_base_url", "ray_address"}:
        return mask_url(value)
    if name == "postgres_url" and value:
        return mask_url(value.get_secret_value())
    if name == "teacher_prices":
        return ", ".join(f"{model}={read:g}/{written:g}" for model, (read, written) in value.items())
    return "" if value is None else str(value)


def is_web_address(url: str) -> bool:
    """Whether something can be asked there: ``http`` or ``https``, a host, and a port that can be one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return False


def mask_url(url: str) -> str:
    """Scheme and host of an endpoint; path, query and user name, where keys are kept, become ***.

    What is no URL becomes *** whole.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "***"
    if not parts.hostname:
        return "***"
    secret = parts.path.strip("/") or parts.query or parts.username
    return f"{parts.scheme}://{parts.hostname}{port}" + ("/***" if secret else "")
