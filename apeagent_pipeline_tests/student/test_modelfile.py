"""The Modelfile as Ollama reads it: its template, rendered by Go's rules, is the chat template's text to the letter."""

import json
import os
import re
import shutil
import subprocess

import pytest

from apeagent_pipeline.student import gguf
from apeagent_pipeline.student.generation import Student
from apeagent_pipeline.student.gguf import ExportConfig, export_gguf
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

# What Ollama does with a template that names .Messages: Go's text/template, with the chat's messages.
GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct {
	Role    string
	Content string
}

func main() {
	var asked struct {
		Template string
		Messages []*Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Parse(asked.Template))
	values := map[string]any{"System": "", "Messages": asked.Messages, "Response": ""}
	if err := parsed.Execute(os.Stdout, values); err != nil {
		panic(err)
	}
}
"""
CHATS = [
    [("system", "You trade."), ("user", "ETH price is $2510. What should I do?")],
    [
        ("system", "You trade."),
        ("user", "One\n\ntwo  "),
        ("assistant", "up\n####\nAPE IN 0.1 ETH"),
        ("user", "And now?"),
    ],
    [("user", 'Quotes " and {{ braces }} and \\n and é \U0001f98d')],
]


@pytest.fixture(scope="module")
def modelfile(tmp_path_factory):
    """A tiny model's Modelfile and its tokenizer; the GGUF files are not looked at."""
    base, out = build_tiny_qwen2(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("out")
    patch = pytest.MonkeyPatch()
    patch.setattr(gguf, "resolve_converter", lambda cache: cache)
    patch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    *_, path = export_gguf(base, out, ExportConfig(), out)
    patch.undo()
    return path.read_bytes().decode(), Student.load(base)


def read_modelfile(text):
    """The instructions by Ollama's rules: one a line; three quotes begin and end a value, which may hold line ends."""
    found = re.findall(r'^(\w+) (?:"""((?:.|\n)*?)"""|(.*?))\r?$', text, re.MULTILINE)
    return {name: long or plain for name, long, plain in found if name != "PARAMETER"} | {
        plain.split()[0]: plain.split()[1] for name, _, plain in found if name == "PARAMETER"
    }


def rendered(template, chat):
    """Go's rules for what the template uses, in Python: range, fields, strings."""
    before, each, after = re.fullmatch(r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template).groups()

    def fill(text, **fields):
        def value(action):
            return json.loads(action[1]) if action[1].startswith('"') else fields[action[1].removeprefix(".")]

        return re.sub(r"\{\{ (\S+) \}\}", value, text)

    turns = "".join(fill(each, Role=role, Content=content) for role, content in chat)
    return fill(before) + turns + fill(after)


def rendered_by_go(template, chat, folder):
    (folder / "main.go").write_text(GO)
    asked = json.dumps({"Template": template, "Messages": [{"Role": role, "Content": text} for role, text in chat]})
    environment = {**os.environ, "GO111MODULE": "off", "GOCACHE": str(folder / "cache")}
    command = [shutil.which("go"), "run", "main.go"]
    done = subprocess.run(command, input=asked.encode(), cwd=folder, env=environment, capture_output=True, check=True)
    return done.stdout.decode()


def expected(student, chat):
    return student.render([{"role": role, "content": content} for role, content in chat])


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_template_gives_the_chat_templates_text_even_after_an_editor_changed_the_line_ends(
    modelfile, chat, line_end
):
    text, student = modelfile
    instructions = read_modelfile(text.replace("\n", line_end))
    assert "\n" not in instructions["TEMPLATE"]
    assert rendered(instructions["TEMPLATE"], chat) == expected(student, chat)
    assert instructions["stop"] == "<|im_end|>"
    assert not any("\n" in value for value in instructions.values())  # nothing that a line end is part of
    assert instructions == read_modelfile(text)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_go_itself_renders_the_template_so(modelfile, tmp_path):
    text, student = modelfile
    for chat in CHATS:
        assert rendered_by_go(read_modelfile(text)["TEMPLATE"], chat, tmp_path) == expected(student, chat)


def test_a_model_with_another_chat_template_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: cache)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    base = build_tiny_qwen2(tmp_path / "base")
    template = base / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    *_, path = export_gguf(base, tmp_path / "out", ExportConfig(), tmp_path)
    assert "TEMPLATE" not in path.read_text()
    assert "# The chat template of this model is the one inside the GGUF file." in path.read_text()
