"""A wrong setting must be told at once, and no secret may be shown."""

from pathlib import Path

import pytest

from apeagent_pipeline.defs.instance import prepare_home
from apeagent_pipeline.settings import SettingsError, load_settings, mask_url, show_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_any_setting_the_demo_needs_no_network(tmp_path: Path) -> None:
    settings = load_settings()
    assert (settings.profile, settings.teacher, settings.rpc_urls, settings.swaps_archive) == (
        "demo",
        "rules",
        (),
        None,
    )
    assert settings.storage_url == str(tmp_path / ".apeagent" / "storage")


def test_the_full_profile_has_the_source_documents_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEAGENT_PROFILE", "full")
    settings = load_settings()
    assert (settings.teacher, settings.teacher_model) == ("openai", "qwen/qwq-32b")
    assert (settings.student, settings.eval_prompts) == ("Qwen/Qwen2.5-3B", 300)
    monkeypatch.setenv("APEAGENT_EVAL_PROMPTS", "20")
    assert load_settings().eval_prompts == 20


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("APEAGENT_PROFILE", "huge", "'demo', 'laptop' or 'full'"),
        ("APEAGENT_SEED", "-1", "greater than or equal to 0"),
        ("APEAGENT_EVAL_PROMPTS", "many", "valid integer"),
        ("APEAGENT_TEACHER", "gpt", "'rules' or 'openai'"),
        ("APEAGENT_CHAIN_ID", "base", "valid integer"),
        ("APEAGENT_TEACHER_PRICES", "qwen/qwq-32b=cheap", "is not of the form qwen/qwq-32b=0.15/0.40"),
        ("APEAGENT_TEACHER_PRICES", "qwq=0.1.2/3", "is not of the form"),
        ("APEAGENT_TEACHER_MAX_COST_USD", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"{variable}={value!r}" in str(caught.value)
    assert told in str(caught.value)


def test_prices_of_models_with_colons_and_slashes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEAGENT_TEACHER_PRICES", "qwen/qwq-32b:nitro=0.15/0.40, llama3.2:3b=0/0,")
    settings = load_settings()
    assert settings.teacher_prices == {"qwen/qwq-32b:nitro": (0.15, 0.4), "llama3.2:3b": (0, 0)}
    shown = {row.variable: row.value for row in show_settings(settings)}
    assert shown["APEAGENT_TEACHER_PRICES"] == "qwen/qwq-32b:nitro=0.15/0.4, llama3.2:3b=0/0"


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEAGENT_TEACHER_API_KEY", "sk-planted")
    monkeypatch.setenv("APEAGENT_TEACHER_BASE_URL", "https://user:planted@teacher.example/planted/v1?key=planted")
    monkeypatch.setenv("APEAGENT_RPC_URLS", "https://user:planted@node.example/v2/planted?key=planted, http://b:8545")
    settings = load_settings()
    shown = " ".join(f"{row.variable}={row.value}" for row in show_settings(settings))
    assert "planted" not in shown + repr(settings) + str(settings.model_dump(exclude={"teacher_base_url"}))
    assert "https://teacher.example/***" in shown
    assert "https://node.example/***" in shown
    assert "http://b:8545" in shown
    assert [url.get_secret_value() for url in settings.rpc_urls][1] == "http://b:8545"


def test_a_storage_address_with_a_password_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEAGENT_STORAGE", "s3://key:hidden@bucket/prefix")
    with pytest.raises(SettingsError, match=r"APEAGENT_STORAGE=\*\*\*: .* AWS_SECRET_ACCESS_KEY") as refused:
        load_settings()
    assert "hidden" not in str(refused.value)
    monkeypatch.setenv("APEAGENT_STORAGE", "abfs://container@account.dfs.core.windows.net/prefix")
    assert load_settings().storage_url == "abfs://container@account.dfs.core.windows.net/prefix"


def test_the_source_of_each_setting_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APEAGENT_SEED", "7")
    (tmp_path / ".env").write_text("APEAGENT_EVAL_PROMPTS=30\n")
    settings = load_settings()
    sources = {row.variable: row.source for row in show_settings(settings)}
    assert (settings.seed, settings.eval_prompts) == (7, 30)
    assert sources["APEAGENT_SEED"] == "environment"
    assert sources["APEAGENT_EVAL_PROMPTS"] == ".env"
    assert sources["APEAGENT_PROFILE"] == "default"


def test_a_home_that_cannot_be_written_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APEAGENT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(SettingsError, match=r"APEAGENT_HOME=.* cannot be written .*set APEAGENT_HOME"):
        prepare_home(load_settings())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://node.example/v2/key", "https://node.example/***"),
        ("http://127.0.0.1:8545", "http://127.0.0.1:8545"),
        ("https://node.example/?key=k", "https://node.example/***"),
        ("https://node.example:key/", "***"),
        ("key", "***"),
    ],
)
def test_an_endpoints_host_is_shown_and_its_key_is_not(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_a_pool_key_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEAGENT_POOL_KEY", "0x1,0x2,500,10,0x0")
    assert "0x1,0x2,500,10,0x0" in {row.value for row in show_settings(load_settings())}
