"""Whoever follows the documentation finds what it names, and figures and defaults as they are."""

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from apeagent_pipeline.settings import load_settings
from apeagent_pipeline_tests.docs import references, results
from apeagent_pipeline_tests.docs.generate import PAGES, README, documents, generated, generated_names
from apeagent_pipeline_tests.docs.results import FOLDER, Result, read_result, result_names
from apeagent_pipeline_tests.docs.settings_table import setting_names, settings_table

LONGEST_README = 150

every_document = pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)


def is_short(text: str) -> bool:
    return len(text.splitlines()) <= LONGEST_README


def unlinked(readme: str, pages: list[str]) -> list[str]:
    return [name for name in pages if f"apeagent_pipeline/docs/{name}" not in readme]


def test_readme_can_be_read_in_five_minutes() -> None:
    assert is_short(README.read_text())
    assert not is_short("line\n" * (LONGEST_README + 1))


def test_readme_leads_to_every_page() -> None:
    pages = [page.name for page in documents()[1:]]
    assert not unlinked(README.read_text(), pages)
    assert unlinked(README.read_text(), [*pages, "lost.md"]) == ["lost.md"]


def test_readme_holds_the_command_that_the_checks_run_as_the_tests() -> None:
    commands = [line for line in README.read_text().splitlines() if line.endswith("bin/pytest")]
    assert len(commands) == 1
    assert commands[0].startswith("python3 -m venv .venv")


@every_document
def test_generated_parts_are_as_code_and_results_say(page: Path) -> None:
    text = page.read_text()
    assert generated(text) == text, "run python -m apeagent_pipeline_tests.docs.generate"


def test_a_setting_changed_by_hand_or_a_figure_typed_by_hand_is_noticed() -> None:
    configuration = (PAGES / "configuration.md").read_text()
    assert generated(configuration.replace("| `42` |", "| `43` |")) == configuration
    assert configuration.replace("| `42` |", "| `43` |") != configuration
    readme = README.read_text()
    figure = read_result("laptop").rows[0][1]
    assert f"| {figure} |" in readme
    assert generated(readme.replace(f"| {figure} |", "| 1 |")) == readme


def test_the_settings_table_knows_profiles_but_not_the_developers_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settings_table()
    assert "| `on_change`; profile `full`: `weekly` |" in before
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APEAGENT_SEED", "7")
    (tmp_path / ".env").write_text("APEAGENT_STUDENT=mine\n")
    assert settings_table() == before
    assert load_settings().seed == 7


def test_every_setting_and_every_result_is_shown() -> None:
    configuration, measurements = ((PAGES / name).read_text() for name in ("configuration.md", "measurements.md"))
    assert all(f"`{name}`" in configuration for name in setting_names())
    shown = {name for page in documents() for name in generated_names(page.read_text())}
    assert {f"result {name}" for name in result_names()} <= shown
    assert measurements.count("<!-- generated") >= 10


def test_a_result_names_commit_date_and_machine_and_has_no_torn_row() -> None:
    for name in result_names():
        read_result(name)
    whole = read_result("laptop").model_dump(mode="json")
    for wrong in ({"commit": "today"}, {"machine": None}, {"rows": [["one cell"]]}, {"summary": ["no such row"]}):
        with pytest.raises(ValidationError):
            Result.model_validate(whole | wrong)
    assert (FOLDER / "laptop.json").is_file()


def test_a_new_result_is_stamped_with_commit_date_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_result("laptop")
    assert before.text() == (FOLDER / "laptop.json").read_text()
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(
        results.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout="abcdef1\n")
    )
    (tmp_path / "laptop.json").write_text(before.text())
    results.stamp("laptop", note="idle")
    after = read_result("laptop")
    assert (after.commit, after.machine) == ("abcdef1", results.this_machine("idle"))
    assert after.machine != before.machine
    assert after.rows == before.rows


def test_a_benchmark_records_its_table_with_commit_date_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(
        results.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout="abcdef1\n")
    )
    results.record("peaks", "python -m peaks", ["swaps", "MiB"], [["1,000", 9]], ["Two ways."], note="busy")
    found = read_result("peaks")
    assert (found.commit, found.command, found.rows) == ("abcdef1", "python -m peaks", [["1,000", 9]])
    assert found.machine == results.this_machine("busy")
    assert "Two ways." in results.result_section("peaks")


@every_document
def test_links_lead_somewhere(page: Path) -> None:
    assert not references.wrong_links(page.read_text(), page)


@every_document
def test_commands_are_those_of_apeagent(page: Path) -> None:
    assert not references.wrong_commands(page.read_text())


@every_document
def test_modules_and_scripts_exist(page: Path) -> None:
    assert not references.wrong_modules(page.read_text())


@every_document
def test_settings_exist(page: Path) -> None:
    assert not references.wrong_settings(page.read_text())


@every_document
def test_files_and_folders_exist(page: Path) -> None:
    assert not references.wrong_paths(page.read_text())


@every_document
def test_names_stand_in_the_files_where_a_page_finds_them(page: Path) -> None:
    assert not references.wrong_names(page.read_text())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("links", "[a page](docs/nowhere.md)"),
        ("links", "# One\n\n[a heading](#two)"),
        ("links", f"[a heading](apeagent_pipeline/docs/{documents()[1].name}#no-such-heading)"),
        ("commands", "`apeagent dance`"),
        ("commands", "`apeagent demo --fast`"),
        ("commands", "```sh\nAPEAGENT_SEED=7 apeagent sync --from 2025-01-21\n```"),
        ("commands", "```sh\napeagent doctor && apeagent ask\n```"),
        ("commands", "1. In a list:\n\n   ```sh\n   apeagent ui --port\n   ```"),
        ("commands", "```sh\n.venv/bin/apeagent demo one two\n```"),
        ("commands", '```sh\napeagent ask "ETH costs $2506.92"\n```'),
        ("modules", "`python -m apeagent_pipeline_tests.benchmarks.nothing`"),
        ("modules", "`python apeagent_pipeline_tests/benchmarks/nothing.py`"),
        ("settings", "`APEAGENT_SED=42`"),
        ("paths", "`gan/nothing.py`"),
        ("paths", "`nowhere/`"),
        ("names", "`Settings` and `Nothing` in `settings.py`"),
        ("names", "`Nothing` in `no_such_file.py`"),
    ],
)
def test_a_wrong_reference_is_found(wrong: str, text: str) -> None:
    arguments = (text, README) if wrong == "links" else (text,)
    assert getattr(references, f"wrong_{wrong}")(*arguments)


@pytest.mark.parametrize(
    ("right", "text"),
    [
        ("links", "# A day's swaps\n\n[itself](#a-days-swaps) [outside](https://dagster.io) `[code](no.md)`"),
        ("commands", "`apeagent sync` and `apeagent --help`"),
        ("commands", "```sh\nAPEAGENT_SEED=7 apeagent sync --from 2025-01-21 --to=2025-01-22  # a comment\n```"),
        ("commands", "```sh\napeagent ask 'ETH costs $2506.92'\n```"),
        ("modules", "`python -m apeagent_pipeline_tests.benchmarks.market`; `--growth`"),
        ("settings", "`APEAGENT_SEED` and every `APEAGENT_*` variable"),
        ("paths", "`gan/sampling.py`, `amm/`, `gan/mine.py` (new), `{storage}/canary_eval/report.json`"),
        ("names", "`Settings` and `load_settings` in `settings.py`"),
    ],
)
def test_a_right_reference_is_left_alone(right: str, text: str) -> None:
    arguments = (text, README) if right == "links" else (text,)
    assert not getattr(references, f"wrong_{right}")(*arguments)
