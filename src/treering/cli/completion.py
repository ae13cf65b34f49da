"""What a shell offers after TAB: corpora, refs and adapters of the store that the line so far names.

Reads names of objects alone, so neither Lance nor torch is imported, and a store that can't be asked offers nothing: while a
line is being typed nothing is said and nothing is made. An object store gets 0.8 s to answer.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

import typer

__all__ = [
    "SCHEMAS",
    "adapters",
    "completing",
    "corpora",
    "exporters",
    "importers",
    "live",
    "named",
    "quietly",
    "refs",
    "schemas",
    "snapshots",
    "targets",
]

VARIABLE = "_TREERING_COMPLETE"
_PATIENCE_S = 0.8
#: Record types that come with treering.
SCHEMAS = ("chat", "labelled", "preference", "tokens")
#: Where bash ends a word, besides blanks: `support@v1=0.3` is five words to it.
_BREAKS = "@:="


def completing() -> bool:
    """Whether a shell asks what could be typed next."""
    return bool(os.environ.get(VARIABLE))


def live(context: typer.Context, incomplete: str) -> list[str]:
    """The word `live`."""
    return _fitting(incomplete, ["live"])


def schemas(context: typer.Context, incomplete: str) -> list[str]:
    """Record types that come with treering."""
    return _fitting(incomplete, SCHEMAS)


def importers(context: typer.Context, incomplete: str) -> list[str]:
    """Formats that `capture` reads, those of other packages too."""
    from treering.formats.known import importer_names

    return _fitting(incomplete, ["auto", *importer_names()])


def exporters(context: typer.Context, incomplete: str) -> list[str]:
    """Formats that `export` writes, those of other packages too."""
    from treering.formats.writers import exporter_names

    return _fitting(incomplete, exporter_names())


def corpora(context: typer.Context, incomplete: str) -> list[str]:
    """Names of corpora."""
    return _fitting(incomplete, _Names(context).corpora())


def snapshots(context: typer.Context, incomplete: str) -> list[str]:
    """Refs of snapshots: `support@v1`; after `..` the later ones: `support@v1..v3`."""
    return _fitting(incomplete, _Names(context).snapshots(incomplete))


def refs(context: typer.Context, incomplete: str) -> list[str]:
    """Refs of data: snapshots, live, new, selections."""
    return _fitting(incomplete, _Names(context).refs(incomplete))


def adapters(context: typer.Context, incomplete: str) -> list[str]:
    """Refs of adapters: `support:1`, `support:production`."""
    return _fitting(incomplete, _Names(context).adapters())


def named(context: typer.Context, incomplete: str) -> list[str]:
    """Whatever a ref can name: data or an adapter."""
    names = _Names(context)
    return _fitting(incomplete, [*names.refs(incomplete), *names.adapters()])


def targets(context: typer.Context, incomplete: str) -> list[str]:
    """What `snapshot --to` takes: a corpus, or its next snapshot."""
    names = _Names(context)
    following = [f"{corpus}@v{max(names.numbers(corpus), default=0) + 1}" for corpus in names.corpora()]
    return _fitting(incomplete, [*names.corpora(), *following])


def quietly(run: Callable[[], Any]) -> Any:
    """Run the parser for a shell that is completing: nothing on stderr unless TREERING_DEBUG is set, and words as bash has them.

    Bash takes `support@v1` apart at `@`, hands the pieces over one by one, and puts what it gets in the place of the last
    piece; so they are joined before, and what they had in front is cut off after.
    """
    debugging = bool(os.environ.get("TREERING_DEBUG"))
    cut = join_words(os.environ) if os.environ[VARIABLE] == "complete_bash" else ""
    said, status = io.StringIO(), 0
    try:
        with redirect_stdout(said), redirect_stderr(sys.stderr if debugging else io.StringIO()):
            run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except Exception:
        if debugging:
            raise
        status = 1
    text = said.getvalue()
    sys.stdout.write("\n".join(line.removeprefix(cut) for line in text.split("\n")) if cut else text)
    return status


def join_words(environ: MutableMapping[str, str]) -> str:
    """Join in `COMP_WORDS` what bash took apart, count again in `COMP_CWORD`; what stands in front of the last piece.

    Where bash ends words is the reader's to set (`COMP_WORDBREAKS`), so what counts is where it did.
    """
    words = environ.get("COMP_WORDS", "").split("\n")
    try:
        current = int(environ.get("COMP_CWORD", ""))
    except ValueError:
        return ""
    joined: list[list[str]] = []  # words, in pieces
    for word in words[: current + 1]:
        if joined and (_is_break(word) or _is_break(joined[-1][-1])):
            joined[-1].append(word)  # nothing at all, where nothing was typed yet after an `@`
        else:
            joined.append([word])
    environ["COMP_WORDS"] = "\n".join("".join(pieces) for pieces in joined)
    environ["COMP_CWORD"] = str(len(joined) - 1)
    pieces = joined[-1] if joined else []
    while pieces and not _is_break(pieces[-1]):
        pieces = pieces[:-1]
    return "".join(pieces).removesuffix("@")  # readline leaves an `@` with what follows


def _is_break(word: str) -> bool:
    return bool(word) and all(letter in _BREAKS for letter in word)


def _fitting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


class _Names:
    """What there is by name in the store that a command line means; empty when that can't be told."""

    def __init__(self, context: typer.Context) -> None:
        given = context.params.get("store") or context.find_root().params.get("store")
        self._given: str | None = given
        self._paths: dict[str, list[str]] = {}

    def corpora(self) -> list[str]:
        """Names of corpora, sorted."""
        return sorted(path.split("/")[1] for path in self._below("corpora") if path.endswith("/corpus.json"))

    def numbers(self, corpus: str) -> list[int]:
        """Numbers of a corpus's snapshots, pruned ones too, ascending."""
        folder = re.compile(rf"snapshots/{re.escape(corpus)}-[0-9a-f]+/v([0-9]+)/")
        return sorted({int(found[1]) for path in self._below("snapshots") if (found := folder.match(path))})

    def snapshots(self, incomplete: str) -> list[str]:
        """`support@v1`, …; and ranges once `..` is typed."""
        corpus, dots, _ = incomplete.partition("..")
        if dots and (found := re.fullmatch(r"(.+)@v([0-9]+)", corpus)):
            later = (number for number in self.numbers(found[1]) if number > int(found[2]))
            return [f"{corpus}..v{number}" for number in later]
        return [f"{corpus}@v{number}" for corpus in self.corpora() for number in self.numbers(corpus)]

    def refs(self, incomplete: str) -> list[str]:
        """Snapshots, live, new and selections."""
        names = self.corpora()
        pools = [f"{corpus}@{pool}" for corpus in names for pool in ("live", "new")]
        folder = re.compile(r"selections/(.+)-[0-9a-f]+/(.+)\.json")
        chosen = [f"{found[1]}/{found[2]}" for path in self._below("selections") if (found := folder.fullmatch(path))]
        return [*self.snapshots(incomplete), *pools, *chosen]

    def adapters(self) -> list[str]:
        """`support:1`, … and the two that are named by what they do."""
        folder = re.compile(r"adapters/([^/]+)/([0-9]+)/")
        found = {(match[1], int(match[2])) for path in self._below("adapters") if (match := folder.match(path))}
        roles = [
            f"{corpus}:{role}" for corpus in sorted({name for name, _ in found}) for role in ("candidate", "production")
        ]
        return [*(f"{corpus}:{number}" for corpus, number in sorted(found)), *roles]

    def _below(self, folder: str) -> list[str]:
        if folder not in self._paths:
            found: list[str] = []
            asking = threading.Thread(target=self._list, args=(folder, found), daemon=True)
            asking.start()
            asking.join(_PATIENCE_S)
            self._paths[folder] = found
        return self._paths[folder]

    def _list(self, folder: str, found: list[str]) -> None:
        from treering.cli.options import locate, options_for  # which offers names of corpora in turn
        from treering.store.location import Location
        from treering.store.objects import objects_at

        with suppress(Exception):  # no store there, settings that can't be read, a server that refuses
            where = locate(self._given)
            found.extend(objects_at(Location.parse(where, options_for(where))).list(folder))
