"""The examples are what they say: commands that exist, hooks that a shell runs, files that parse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import treering
from treering.cli.app import app
from treering.server.keys import create_key

from .running import running

EXAMPLES = Path(__file__).parents[2] / "examples"


def options(*words: str) -> set[str]:
    """The options of a command."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("name", ["treering.service", "compose.yaml"])
def test_deployment_examples_name_commands_and_options_that_exist(name: str) -> None:
    text = (EXAMPLES / name).read_text("utf-8")
    found = re.findall(r"treering --store \S+ ((?:serve|keys create|create|init)\b[^\n\"']*)", text)
    assert any(one.startswith("serve") for one in found)
    for one in found:
        words = one.split()
        verb = words[:2] if words[0] == "keys" else words[:1]
        assert set(re.findall(r"--[a-z-]+", one)) <= options(*verb), one


def test_the_compose_file_serves_on_all_addresses_and_gives_it_time_to_drain() -> None:
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text("utf-8"))["services"]
    assert "--host 0.0.0.0" in services["treering"]["command"]
    assert services["treering"]["command"].startswith("treering ")  # a shell would keep SIGTERM to itself
    built = services["treering"]["build"]["dockerfile_inline"]
    assert "/src[server]" in built  # what is run once, such as init, needs it too
    assert services["treering"]["stop_grace_period"] == "90s"
    (volume,) = services["treering"]["volumes"]
    # The spool of a store on an object store: in the container's own layer a new image would drop it.
    assert services["treering"]["environment"]["TREERING_STATE_DIR"].startswith(volume.partition(":")[2] + "/")
    assert "8321" in services["proxy"]["command"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = (EXAMPLES / "treering.service").read_text("utf-8")
    unit = tmp_path / "treering.service"
    unit.write_text(text.replace("/opt/treering/bin/treering", "/bin/true").replace("User=treering\n", ""))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert "treering.service" not in done.stderr, done.stderr


def test_the_unit_makes_its_store_before_it_serves_it() -> None:
    lines = (EXAMPLES / "treering.service").read_text("utf-8").splitlines()
    before, serve = (next(one for one in lines if one.startswith(name)) for name in ("ExecStartPre=", "ExecStart="))
    assert before.partition("=")[2] == serve.partition("=")[2].partition(" serve ")[0] + " init"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize("agent", ["claude-code", "codex"])
def test_the_hooks_of_the_examples_capture_a_turn(store: treering.Store, agent: str) -> None:
    hooks = json.loads((EXAMPLES / f"hooks-{agent}.json").read_text("utf-8"))["hooks"]
    store.create("chats", "chat")
    store.create("more", "chat")
    _, token = create_key(store, ["chats", "more"], verbs=["capture"])
    events = [
        {"hook_event_name": "UserPromptSubmit", "prompt": "list"},
        {"hook_event_name": "PostToolUse", "tool_name": "Bash", "tool_input": {"command": "ls"}, "tool_response": "a", "tool_use_id": "t"},
        {"hook_event_name": "Stop", "last_assistant_message": "one file"},
    ]  # fmt: skip
    # A command's arguments are everybody's to read: the key is said by what the shell does itself.
    for groups in hooks.values():
        for hook in groups[0]["hooks"]:
            assert "TREERING_KEY" not in hook["command"].partition("curl")[2]
    with running(store) as server:
        told = {"TREERING_URL": server.url, "TREERING_KEY": token, "TREERING_CORPUS": "chats"}
        for event in events:
            (hook,) = hooks[event["hook_event_name"]][0]["hooks"]
            payload = json.dumps({"session_id": "s1", "transcript_path": "/t", **event})
            done = subprocess.run(
                ["sh", "-c", hook["command"]], input=payload, text=True, capture_output=True, env={**os.environ, **told}
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        # A server that is away never stops the agent.
        away = {**os.environ, **told, "TREERING_URL": "http://127.0.0.1:9"}
        done = subprocess.run(["sh", "-c", hook["command"]], input="{}", text=True, capture_output=True, env=away)
        assert (done.returncode, done.stdout) == (0, "")
    (row,) = store.live("chats").to_table().to_pylist()
    assert [one["role"] for one in row["messages"]] == ["user", "assistant", "tool", "assistant"]
