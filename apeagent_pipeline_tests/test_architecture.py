"""No import cycle, and no file or function too long to take in. Each rule has a control that must fail."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "apeagent_pipeline"
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
REASON = f"Over {LONGEST_FILE} lines: "
"""What a longer file has in its docstring, with the reason behind it."""


def too_long(name: str, source: str) -> list[str]:
    """What is too long in a module: the file, unless its docstring gives the reason, and functions."""
    module = ast.parse(source)
    lines = len(source.splitlines())
    found = []
    if lines > LONGEST_FILE and REASON not in (ast.get_docstring(module) or ""):
        found.append(f"{name} has {lines} lines: split it, or write '{REASON}<reason>' into its docstring")
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > LONGEST_FUNCTION:
                found.append(f"{name}: {node.name} has {length} lines: cut it into named steps")
    return found


def test_files_and_functions_are_short_enough_to_take_in() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    assert modules
    assert [each for path in modules for each in too_long(str(path.relative_to(ROOT)), path.read_text())] == []


def test_a_long_file_is_found_unless_its_docstring_says_why() -> None:
    rest = "x = 1\n" * LONGEST_FILE
    assert "has 401 lines" in too_long("a.py", '"""Much."""\n' + rest)[0]
    assert "has 401 lines" in too_long("a.py", "# " + REASON + "a comment is no docstring\n" + rest)[0]
    assert too_long("a.py", f'"""{REASON}its steps are read together."""\n' + rest) == []
    assert too_long("a.py", rest) == []


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_long_function_is_found_wherever_it_stands(kind: str) -> None:
    def method(lines: int) -> str:
        return f"class A:\n    {kind} long(self):\n" + "        x = 1\n" * (lines - 1)

    assert "long has 61 lines" in too_long("a.py", method(LONGEST_FUNCTION + 1))[0]
    assert too_long("a.py", method(LONGEST_FUNCTION)) == []


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [("", "import planted.first.one", True), ("from planted.second import two", "import planted.first.one", False)],
    ids=["one way", "cycle"],
)
def test_the_contract_against_cycles_finds_a_planted_one(tmp_path: Path, first: str, second: str, kept: bool) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    cycles = next(each for each in contracts if each["type"] == "acyclic_siblings")
    ancestors = [name.replace("apeagent_pipeline", "planted") for name in cycles["ancestors"]]
    for path, content in {
        "planted/__init__.py": "",
        "planted/first/__init__.py": "",
        "planted/first/one.py": first,
        "planted/second/__init__.py": "",
        "planted/second/two.py": second,
        "contract.toml": '[tool.importlinter]\nroot_package = "planted"\n[[tool.importlinter.contracts]]\n'
        f'name = "cycles"\ntype = "acyclic_siblings"\nancestors = {ancestors!r}\n',
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports('contract.toml'))"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is kept, done.stdout + done.stderr
    assert ("1 broken" in done.stdout) is not kept
