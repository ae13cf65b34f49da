"""Write the reference pages of `docs/` from the code: every verb of the command, every public name of the library.

`python scripts/generate_docs.py` writes what is out of date; with `--check` it names that and exits 1.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, get_args, get_type_hints

import typer.main
from pydantic import BaseModel

import treering
from treering.cli.app import app

DOCS = Path(__file__).parents[1] / "docs"
_NOTE = "*Made by `python scripts/generate_docs.py` from the code: change that, not this page.*"
_WIDTH = 110


def generate() -> dict[str, str]:
    """File name in `docs/` → text."""
    return {"reference-cli.md": commands_page(), "reference-api.md": library_page()}


# The command


def commands_page() -> str:
    """Every verb with its arguments and options."""
    verbs = list(_verbs(typer.main.get_command(app), ()))
    lines = [
        "# Reference: the command",
        "",
        _NOTE,
        "",
        "Every verb takes `--json` and `--store DIR|URI`. Data goes to stdout, talk and progress to stderr. The store is `--store`, else `TREERING_STORE`, "
        "else `store` in `./treering.toml`, else `./.treering`. Exit codes: 0 done, 1 unexpected (`TREERING_DEBUG=1` shows the "
        "traceback), 2 usage, 3 a check said no, 4 not found, 5 conflict, 6 store. An error is one line on stderr and a hint, "
        "with `--json` an object there.",
        "",
        " · ".join(
            f"[{name}](#{anchor('treering ' + name)})" for name, command in verbs if name and not _is_group(command)
        ),
    ]
    for name, command in verbs:
        if _is_group(command) and name:
            continue  # its verbs follow
        lines += [
            "",
            f"## `treering {name}`".replace(" `treering `", " `treering`"),
            "",
            f"```text\n{_usage(name, command)}\n```",
        ]
        lines += ["", *_help(command)]
        function = command.callback
        annotations = get_type_hints(function, include_extras=False) if function else {}
        rows = [row for parameter in command.params if (row := _parameter(parameter, annotations))]
        if rows:
            lines += ["", "| | |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _verbs(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, below in getattr(command, "commands", {}).items():
        yield from _verbs(below, (*path, name))


def _is_group(command: Any) -> bool:
    return bool(getattr(command, "commands", None))


def _usage(name: str, command: Any) -> str:
    words = [f"treering {name}".strip()]
    if any(parameter.param_type_name == "option" for parameter in command.params):
        words.append("[OPTIONS]")
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            shown = str(parameter.metavar or parameter.name.upper())
            words.append(shown if parameter.required or shown.startswith("[") else f"[{shown}]")
    if _is_group(command):
        words.append("VERB …")
    return " ".join(words)


def _help(command: Any) -> list[str]:
    text = inspect.cleandoc(command.help or "")
    return "\n\n".join(_escape(paragraph.replace("\n", " ")) for paragraph in text.split("\n\n")).split("\n")


def _parameter(parameter: Any, annotations: dict[str, Any]) -> str | None:
    """A row of the table; None for what every verb has."""
    names = [*parameter.opts, *parameter.secondary_opts]
    text = _escape(" ".join(str(getattr(parameter, "help", None) or "").split()))
    if {"--help", "--json"} & {*names} or ("--store" in names and "TREERING" in text):
        return None
    is_option = parameter.param_type_name == "option"
    shown = ", ".join(names) if is_option else str(parameter.metavar or parameter.name.upper())
    takes = "" if not is_option or parameter.is_flag else " " + _metavar(parameter, annotations.get(parameter.name))
    default = parameter.default
    if is_option and not parameter.is_flag and default not in (None, (), []) and "[default" not in text:
        text += f" [default: {getattr(default, 'value', default)}]"
    required = " **required**" if is_option and parameter.required else ""
    return f"| {_cell(f'{shown}{takes}')}{required} | {text} |"


def _metavar(parameter: Any, annotation: Any) -> str:
    """What an option takes; by the function's annotation, since typer's own words change between its versions."""
    if parameter.metavar:
        return str(parameter.metavar)
    kinds = [annotation]
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, type) and issubclass(kind, Enum):
            return "/".join(str(choice.value) for choice in kind)
        if kind in (int, float):
            return "N" if kind is int else "X"
        kinds += [inner for inner in get_args(kind) if inner is not type(None)]
    return "TEXT"


# The library


def library_page() -> str:
    """Every public name, and the classes that their functions and methods give back."""
    front = [(name, getattr(treering, name)) for name in treering.__all__]
    functions = [(name, value) for name, value in front if not isinstance(value, type)]
    classes = {name: value for name, value in front if isinstance(value, type)}
    errors = {name: value for name, value in classes.items() if issubclass(value, Exception)}
    returned = _returned([value for _, value in front], set(classes.values()))
    lines = [
        "# Reference: the library",
        "",
        _NOTE,
        "",
        "Scores are fractions of 1, moments are UTC, sizes are bytes unless a name says otherwise. Errors are those of the last "
        "section; each has a `code` that is never renamed, a `message` and a `hint`.",
        "",
        "Functions: " + " · ".join(f"[{name}](#{anchor('treering.' + name)})" for name, _ in functions),
        "",
        "Classes: " + " · ".join(f"[{name}](#{anchor(name)})" for name in classes if name not in errors),
        "",
        "What these give back: " + " · ".join(f"[{name}](#{anchor(name)})" for name in returned),
    ]
    for name, function in functions:
        lines += ["", f"## `treering.{name}`", "", *_callable(f"treering.{name}", function)]
    for name, cls in {**{n: c for n, c in classes.items() if n not in errors}, **returned}.items():
        lines += ["", f"## `{name}`", "", *_class(name, cls)]
    lines += ["", "## Errors", "", "| error | exit code | for |", "| --- | --- | --- |"]
    for name, cls in errors.items():
        lines.append(f"| `{name}` | {cls.exit_code} | {_escape(_first(cls))} |")
    return "\n".join(lines) + "\n"


def _class(name: str, cls: type) -> list[str]:
    lines = _doc(cls)
    if issubclass(cls, BaseModel):
        own = [(field, info) for field, info in cls.model_fields.items() if not field.startswith("_")]
        if own:
            lines += ["", "| field | type | default |", "| --- | --- | --- |"]
            lines += [f"| `{field}` | {_cell(_type_of(cls, field))} | {_default(info)} |" for field, info in own]
    elif dataclasses.is_dataclass(cls):
        lines += ["", "| field | type |", "| --- | --- |"]
        lines += [
            f"| `{field.name}` | {_cell(_flat(field.type))} |"
            for field in dataclasses.fields(cls)
            if field.name[0] != "_"
        ]
    elif "__init__" in vars(cls) and name in treering.__all__ and name not in _MADE:
        lines += ["", "```text", _signature(name, cls.__init__), "```"]
    for member, value in _members(cls):
        if isinstance(value, property | functools.cached_property):
            getter = value.fget if isinstance(value, property) else value.func
            kind = _flat(getattr(getter, "__annotations__", {}).get("return", ""))
            lines += ["", f"* `.{member}`{f': `{kind}`' if kind else ''}: {_escape(' '.join(_first(getter).split()))}"]
        else:
            lines += ["", f"### `{name}.{member}`", "", *_callable(f"{name}.{member}", value)]
    return lines


#: What only the store and the loader themselves are meant to hold; members that give one are left out.
_INNER = {
    "AnnotationLog", "BaseStore", "Lease", "LanceTable", "MixPlan", "Objects", "Path", "SourceLike", "SourcePlan", "Validated",
}  # fmt: skip
#: Made by others for the caller: how is of no interest.
_MADE = {"Store", "Corpus", "Snapshot", "Source", "Loader", "Mix", "ScoreMatrix"}


def _members(cls: type) -> list[tuple[str, Any]]:
    """Public properties and methods of a class and its bases of ours that say what they are for; properties first."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] == "treering":
            found.update({name: value for name, value in vars(base).items() if not name.startswith("_")})
    fields = (
        set(getattr(cls, "model_fields", ())) | {f.name for f in dataclasses.fields(cls)}
        if dataclasses.is_dataclass(cls)
        else set(getattr(cls, "model_fields", ()))
    )
    properties, methods = [], []
    for name, value in sorted(found.items()):
        inner = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        gives = str(getattr(inner, "__annotations__", {}).get("return", ""))
        if name in fields or {*re.findall(r"\w+", gives)} & (_INNER - {"Path"}):
            continue
        if isinstance(value, property | functools.cached_property):
            getter = value.fget if isinstance(value, property) else value.func
            if inspect.getdoc(getter):
                properties.append((name, value))
        elif isinstance(value, FunctionType | classmethod | staticmethod):
            function = value if isinstance(value, FunctionType) else value.__func__
            if inspect.getdoc(function):
                methods.append((name, value))
    return [*properties, *methods]


def _callable(name: str, value: Any) -> list[str]:
    function = value.__func__ if isinstance(value, classmethod | staticmethod | MethodType) else value
    return [
        "```text",
        _signature(name, function, bound="." in name and not name.startswith("treering.")),
        "```",
        "",
        *_doc(function),
    ]


def _signature(name: str, function: Any, *, bound: bool = True) -> str:
    signature = inspect.signature(function)
    shown, star = [], False
    for place, parameter in enumerate(signature.parameters.values()):
        if bound and place == 0 and parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            if not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
                shown.append("*")
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = prefix + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_flat(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}"
        shown.append(text)
    gives = "" if signature.return_annotation is signature.empty else f" -> {_flat(signature.return_annotation)}"
    line = f"{name}({', '.join(shown)}){gives}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in shown) + f"){gives}"


def _returned(values: list[Any], known: set[type]) -> dict[str, type]:
    """The classes of ours that functions and methods of `values` give back, and those that theirs do, by name."""
    found: dict[str, type] = {}
    waiting = [*values]
    while waiting:
        value = waiting.pop()
        callables = [m for _, m in _members(value)] if isinstance(value, type) else [value]
        for member in callables:
            inner = (
                getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
            )
            hint = str(getattr(inner, "__annotations__", {}).get("return", ""))
            for word in re.findall(r"\b[A-Z]\w+", hint):
                cls = _resolve(word, inner.__module__)
                if isinstance(cls, type) and cls.__module__.startswith("treering.") and cls not in known:
                    known.add(cls)
                    if issubclass(cls, Exception) or (
                        not _members(cls) and not (issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls))
                    ):
                        continue
                    named = {other.__name__ for other in known if other is not cls}
                    name = (
                        cls.__name__
                        if cls.__name__ not in named
                        else f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
                    )
                    if cls.__name__ not in _INNER:
                        found[name] = cls
                        waiting.append(cls)
    return dict(sorted(found.items()))


@functools.cache
def _imports(module: str) -> dict[str, tuple[str, str]]:
    """Name → (module, name there) of everything that a module imports, for type checkers alone too."""
    source = inspect.getsource(importlib.import_module(module))
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
    return found


def _resolve(word: str, module: str) -> Any:
    here = getattr(importlib.import_module(module), word, None)
    if here is None and word in _imports(module) and _imports(module)[word][0].startswith("treering"):
        home, name = _imports(module)[word]
        here = getattr(importlib.import_module(home), name, None)
    return here


def _type_of(cls: type, field: str) -> str:
    for base in cls.__mro__:
        if field in vars(base).get("__annotations__", {}):
            return _flat(vars(base)["__annotations__"][field])
    return ""


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    if info.default_factory is not None:
        made = info.default_factory()
        return _cell(repr(made)) if made in ((), [], {}) else "its own"
    return _cell(repr(info.default))


def _flat(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return " ".join(text.split())


def _doc(value: Any) -> list[str]:
    text = inspect.getdoc(value) or ""
    return [line for paragraph in text.split("\n\n") for line in (_paragraph(paragraph), "")][:-1]


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if any(line.startswith("    ") for line in lines) or all(re.match(r"\w+ = |\[\w+\]", line) for line in lines):
        return f"```text\n{text}\n```"
    return _escape(text)


def _first(value: Any) -> str:
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")


def _cell(code: str) -> str:
    """Code in a cell of a table, where a bar would end it."""
    return f"`{code}`".replace("|", "\\|")


def _escape(text: str) -> str:
    """Text as Markdown shows it: what stands between backticks is left alone."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[\]|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def main(arguments: list[str]) -> int:
    """See the module's text."""
    stale = [
        name
        for name, text in generate().items()
        if not (DOCS / name).exists() or (DOCS / name).read_text("utf-8") != text
    ]
    if "--check" in arguments:
        for name in stale:
            print(f"docs/{name} is out of date: run scripts/generate_docs.py", file=sys.stderr)
        return 1 if stale else 0
    DOCS.mkdir(exist_ok=True)
    files = generate()
    for name in stale:
        (DOCS / name).write_text(files[name], "utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
