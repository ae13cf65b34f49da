"""What TAB gives, in the shells themselves: bash, zsh and fish on a terminal, with the script that treering prints."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import treering
from tests.cli.test_startup import HEAVY, imported
from treering.cli.completion import join_words


def said_by(shell: str, words: list[str], home: Path, lines: list[str], patience_s: float = 20.0) -> list[str]:
    """What stands on the command line of an interactive shell once TAB has done its work on each of `lines`."""
    worker, terminal = pty.openpty()
    environment = {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8", "PS1": "% ",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip
    process = subprocess.Popen(
        [shell, *words], stdin=terminal, stdout=terminal, stderr=terminal, cwd=home, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    seen = ""

    def until(pattern: str) -> str:
        nonlocal seen
        ends = time.monotonic() + patience_s
        while not (found := re.search(pattern, seen)):
            if time.monotonic() > ends or not select.select([worker], [], [], 1.0)[0]:
                if time.monotonic() > ends:
                    pytest.fail(f"{shell} said {seen!r}")
                continue
            seen += os.read(worker, 4096).decode("utf-8", "replace")
        seen = seen[found.end() :]
        return found[1]

    try:
        os.write(worker, b"echo rea''dy\n")
        until(r"(ready)\r\n")
        results = []
        for number, line in enumerate(lines):
            os.write(worker, line.encode() + b"\t")
            # Once TAB has done its work the shell reads on: to the start of the line (^A), and printed instead of run.
            os.write(worker, f"\x01echo 'end'{number}: \x05 .\n".encode())
            results.append(until(rf"end{number}: ([^\r\n]*?) \.\r\n").strip())
        return results
    finally:
        process.kill()
        process.wait()
        os.close(worker)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store in it, and `treering` in its `bin`."""
    made = tmp_path_factory.mktemp("made")
    program = made / "bin" / "treering"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m treering.cli "$@"\n')
    program.chmod(0o755)
    store = treering.open(made / ".treering")
    support = store.create("support", "labelled")
    store.create("tickets", "labelled")
    for week in range(3):
        with support.capture() as live:
            live.extend({"text": f"{week} {number}", "label": "a"} for number in range(40))
        support.snapshot()
    store.load("support@v1").select(rows=5, name="replay")
    return made


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own with that in it, which is the working directory too."""
    monkeypatch.delenv("TREERING_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def install(shell: str, home: Path) -> None:
    """Run `treering --install-completion` in a shell, which it recognises, for a home of the test's own."""
    environment = {**os.environ, "HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [shell, "-c", "treering --install-completion; true"],  # `true`: else the shell makes way for treering
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, f"{shell} completion installed" in done.stdout) == (0, True), done.stderr


def complete(shell: str, *words: str) -> list[str]:
    """What treering answers a shell that asks for the last of the words, as bash and zsh ask it."""
    environment = {**os.environ, "_TREERING_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        environment |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "treering.cli"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


LINES = {
    "treering hea": "treering head",
    "treering head sup": "treering head support",  # as far as all candidates agree
    "treering head support@l": "treering head support@live",
    "treering head support/": "treering head support/replay",
    "treering verify support@v1..v3 --js": "treering verify support@v1..v3 --json",
    "treering diff support@v1..v2 support@n": "treering diff support@v1..v2 support@new",
    "treering mix support@v1=0.3 support@li": "treering mix support@v1=0.3 support@live",
    "treering snapshot live --to tickets@": "treering snapshot live --to tickets@v1",
    "treering --store=.treering log ti": "treering --store=.treering log tickets",
}


def test_tab_completes_in_bash(home: Path) -> None:
    install("bash", home)
    words = ["--noprofile", "--rcfile", str(home / ".bashrc"), "-i"]
    assert said_by("bash", words, home, list(LINES)) == list(LINES.values())


def test_tab_completes_in_a_bash_that_ends_words_at_blanks_alone(home: Path) -> None:
    install("bash", home)
    with (home / ".bashrc").open("a") as rc:
        rc.write("COMP_WORDBREAKS=' '\n")
    words = ["--noprofile", "--rcfile", str(home / ".bashrc"), "-i"]
    some = ["treering head support@l", "treering mix support@v1=0.3 support@li"]
    assert said_by("bash", words, home, some) == [LINES[line] for line in some]


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh isn't installed")
def test_tab_completes_in_zsh(home: Path) -> None:
    install("zsh", home)
    rc = home / ".zshrc"
    rc.write_text(
        rc.read_text().replace("compinit", "compinit -u").replace("-Uz compinit -u", "-Uz compinit") + "PS1='% '\n"
    )
    some = ["treering head support@l", "treering mix support@v1=0.3 support@li", "treering snapshot live --to tickets@"]
    # The first TAB of a session only loads what typer wrote for zsh.
    assert said_by("zsh", ["-i"], home, ["treering ", *some])[1:] == [LINES[line] for line in some]


@pytest.mark.skipif(not shutil.which("fish"), reason="fish isn't installed")
def test_fish_offers_what_fits(home: Path) -> None:
    install("fish", home)
    asked = "source ~/.config/fish/completions/treering.fish; complete -C 'treering mix support@v1=0.3 support@v'"
    environment = {**os.environ, "HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["fish", "--no-config", "-c", asked], cwd=home, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["support@v1", "support@v2", "support@v3"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("log", ""), {"support", "tickets"}),
        (("show", "support@v"), {"v1", "v2", "v3"}),
        (("show", "support@v1.."), {"v1..v2", "v1..v3"}),
        (("pack", "tickets@v"), set()),
        (("snapshot", ""), {"live"}),
        (("snapshot", "live", "--to", "support"), {"support", "support@v4"}),
        (("select", "support/r"), {"support/replay"}),
        (("capture", "--format", "lang"), {"langfuse", "langsmith"}),
        (("capture", "--format", "a"), {"auto", "atif"}),
        (("export", "--format", "t"), {"trl"}),
        (("create", "--schema", ""), {"chat", "labelled", "preference", "tokens"}),
    ],
)
def test_what_is_offered(home: Path, words: tuple[str, ...], offered: set[str]) -> None:
    pieces = [piece for word in words for piece in (re.split(r"(@)", word) if "@" in word else [word])]
    assert {name.removeprefix("@") for name in complete("bash", "treering", *pieces) if name} == offered


@pytest.mark.parametrize(
    ("typed", "joined", "in_front"),
    [
        (["treering", "head", "sup"], ["treering", "head", "sup"], ""),
        (["treering", "head", "support", "@"], ["treering", "head", "support@"], "support"),
        (["treering", "head", "support", "@", "v1"], ["treering", "head", "support@v1"], "support"),
        (["treering", "mix", "a", "@", "v1", "=", "0.3", "b", "@", "l"], ["treering", "mix", "a@v1=0.3", "b@l"], "b"),
        (["treering", "eval", "a", ":", ""], ["treering", "eval", "a:"], "a:"),
        (["treering", "--store", "=", "x", "log", ""], ["treering", "--store=x", "log", ""], ""),
        (
            ["treering", "head", "support@v"],
            ["treering", "head", "support@v"],
            "",
        ),  # bash was told not to end words there
        (["treering", "mix", "a@v1", "=", "0.3", "b@l"], ["treering", "mix", "a@v1=0.3", "b@l"], ""),
    ],
)
def test_what_bash_took_apart_is_joined(typed: list[str], joined: list[str], in_front: str) -> None:
    environment = {"COMP_WORDS": "\n".join(typed), "COMP_CWORD": str(len(typed) - 1)}
    assert join_words(environment) == in_front
    assert environment == {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(len(joined) - 1)}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    "settings",
    ['store = "nowhere"', 'store = "s3://"', "store = [", 'store = "ftp://x"', 'store = "bin"'],
    ids=["no store", "no bucket", "no toml", "no scheme", "no store either"],
)
def test_a_store_that_cannot_be_asked_offers_nothing_and_says_nothing(home: Path, shell: str, settings: str) -> None:
    (home / "treering.toml").write_text(settings)
    assert not [name for name in complete(shell, "treering", "head", "s") if "support" in name]
    assert not (home / "nowhere").exists()


def test_an_object_store_that_does_not_answer_costs_a_second(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (home / "treering.toml").write_text(
            f'store = "s3://bucket/prefix"\n[storage_options]\naws_endpoint = "{host}"\nallow_http = "true"\n'
            'aws_access_key_id = "a"\naws_secret_access_key = "b"\naws_region = "r"\n'
        )
        started = time.monotonic()
        assert not any(complete("bash", "treering", "log", "s"))
        assert time.monotonic() - started < 15  # of these the waiting is 0.8; the rest is a busy machine's


def test_completing_imports_neither_lance_nor_torch(home: Path) -> None:
    code = (
        "import os, sys; sys.argv = ['treering']; from treering.cli import main\n"
        "os.environ.update(_TREERING_COMPLETE='complete_bash', COMP_WORDS='treering\\nhead\\ns', COMP_CWORD='2')\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    )
    assert imported(code, home, [module for module in HEAVY if module != "pydantic"]) == []


@pytest.mark.parametrize("asked", ["complete_bash", "complete_zsh", "complete_csh", "nonsense", ""])
def test_whatever_a_shell_says_there_is_no_traceback(home: Path, asked: str) -> None:
    environment = {**os.environ, "_TREERING_COMPLETE": asked}  # and none of what else a shell has to say
    done = subprocess.run(
        [sys.executable, "-m", "treering.cli"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode in (0, 1, 2)
