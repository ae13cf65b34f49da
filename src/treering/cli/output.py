"""Output: data to stdout, talk to stderr, table and JSON from the same model.

Knows terminals. Does not know stores. Text from records is never taken for markup or for terminal commands.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "columns",
    "counted",
    "counter",
    "facts",
    "gauge",
    "indented",
    "natural",
    "number",
    "plain",
    "render",
    "say",
    "short",
    "size",
    "stages",
    "text",
    "tied",
    "waiting",
    "when",
]


#: C0 but tab and line end, C1, and what orders, embeds or isolates directions of writing (the marks alone are harmless).
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_TIE = "\ue000"  # of the private use area: nobody breaks a line at it, and `render` makes it a space again


def render(value: Any, as_json: bool, view: Callable[[], RenderableType | str], *, to_stderr: bool = False) -> None:
    """Print `value` on stdout: as JSON (models, dataclasses, dicts and lists of them; NaN becomes null), or its `view`.

    to_stderr: stdout carries the data itself, and this is talk about it.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if as_json:
        from pydantic_core import to_json

        data = to_json(value, indent=2, inf_nan_mode="null", bytes_mode="base64")
        stream.write(data.decode() + "\n")
    else:
        shown = view()
        console = _console(stream)
        if isinstance(shown, str):
            console.print(text(shown), soft_wrap=True)  # lines that the API drew: breaking them would spoil them
        else:
            with console.capture() as captured:
                console.print(shown)
            # A table fills its cells with spaces; who cuts or compares lines should not meet them.
            stream.write(re.sub(r" +$", "", captured.get().replace(_TIE, " "), flags=re.MULTILINE))
    stream.flush()


def say(message: str) -> None:
    """One line of talk on stderr."""
    _console(sys.stderr).print(text(message), soft_wrap=True)


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes the count so far and shows it on stderr; silent unless that is a terminal."""
    console = _console(sys.stderr)
    if not console.is_terminal:
        yield lambda done: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    layout = (SpinnerColumn(), TextColumn("{task.completed:,} {task.description}"), TimeElapsedColumn())
    with Progress(*layout, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def gauge(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Gives a function that takes (done, of how many) and draws a bar on stderr; silent unless that is a terminal."""
    console = _console(sys.stderr)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    layout = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*layout, console=console, transient=True) as progress:
        task = progress.add_task(plain(what), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on stderr while something takes its time; silent unless it is a terminal."""
    console = _console(sys.stderr)
    if not console.is_terminal:
        yield
        return
    with console.status(plain(what)):
        yield


@contextmanager
def stages(names: Mapping[str, str]) -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that takes (stage, done, of how many) and draws a bar per stage on stderr, if that is a terminal.

    `names`: what to call a stage; one that isn't named is called as it is.
    """
    console = _console(sys.stderr)
    if not console.is_terminal:
        yield lambda stage, done, total: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        bars: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(plain(names.get(stage, stage)))
            progress.update(bars[stage], completed=done, total=total)

        yield update


def facts(pairs: Sequence[tuple[str, Any]]) -> Table:
    """Name and value, a line each; a value of None is left out."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            grid.add_row(text(name), text(value))
    return grid


def columns(heads: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> Table:
    """A table without lines; the columns named in `right` are set flush right and never wrapped."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", overflow="fold", no_wrap=head in right)
    for row in rows:
        table.add_row(*map(text, row))
    return table


def indented(line: Any, by: int) -> RenderableType:
    """A line that stays in its column when it has to be wrapped."""
    from rich.padding import Padding

    return Padding(text(line), (0, 0, 0, by))


def text(value: Any) -> Text:
    """A value as text that is neither markup nor a terminal command; None is a dot."""
    from rich.text import Text

    return value if isinstance(value, Text) else Text("·" if value is None else plain(str(value)))


def plain(value: str) -> str:
    """Control characters, but for tabs and line ends, become U+FFFD: a record must not steer the reader's terminal.

    Those that turn the direction of writing are among them: they make a line read as another one.
    """
    return _STEERING.sub("\ufffd", value.replace("\r\n", "\n"))


def tied(words: str) -> str:
    """Words that stay on one line of a table, such as a name and its number."""
    return words.replace(" ", _TIE)


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """A key that sorts `support@v2` before `support@v10`."""
    return tuple(
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)
    )


def number(value: int | None) -> str:
    """12,345; a dot for None."""
    return "·" if value is None else f"{value:,}"


def counted(count: int, noun: str) -> str:
    """`1 snapshot`, `12 snapshots`, `3 batches`."""
    ending = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def size(count: int) -> str:
    """Bytes in MiB; few of them in KiB, or as they are."""
    if count < 1 << 10:
        return f"{count} B"
    return f"{count / (1 << 10):,.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):,.1f} MiB"


def short(digest: str | None) -> str:
    """The first 12 characters of a digest."""
    return "·" if digest is None else digest[:12]


def when(moment: datetime) -> str:
    """A moment to the minute, UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _console(stream: Any) -> Console:
    # Made for each use: the streams may be replaced meanwhile, and NO_COLOR is read here.
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)
