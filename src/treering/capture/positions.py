"""How far an import has come: a small durable document per file, while the file isn't at its end.

Only what is in the store counts as read, so a position never promises more than the table holds, on whichever host the import
is continued. Does not read files.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import PurePosixPath

from treering.errors import NotFoundError
from treering.store.corpus import BaseCorpus
from treering.store.documents import ImportPosition, parse_document

__all__ = ["find_position", "forget_position", "keep_position", "position_key", "positions"]


def position_key(origin: str, inode: int | None) -> str:
    """What a file's position is found by: of a local file its folder and inode, which it keeps when it is rotated.

    Not the device: its number isn't the same after every start, and a folder lies on one.
    """
    name = origin if inode is None else f"{os.path.dirname(origin)}\0{inode}"
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def find_position(corpus: BaseCorpus, key: str) -> ImportPosition | None:
    """Where the import of a file stands; None when none was cut short. Raises StoreError when the document is damaged."""
    path = _path(corpus, key)
    try:
        found = parse_document(ImportPosition, path, corpus.store.objects.get(path))
    except NotFoundError:
        return None
    return found if found.incarnation == corpus.record.incarnation else None


def positions(corpus: BaseCorpus) -> list[str]:
    """What the positions that are kept are found by. Raises StoreError."""
    return [PurePosixPath(path).stem for path in corpus.store.objects.list(_folder(corpus))]


def keep_position(
    corpus: BaseCorpus,
    key: str,
    *,
    origin: str,
    format: str,  # noqa: A002  (as the member is called)
    values: int,
    bytes: int,  # noqa: A002
    digest: str,
    remembers: bool,
    refused: int,
) -> None:
    """Note, durably, how far it has come. Raises StoreError."""
    position = ImportPosition(
        corpus=corpus.name,
        incarnation=corpus.record.incarnation,
        origin=origin,
        format=format,
        values=values,
        bytes=bytes,
        digest=digest,
        remembers=remembers,
        refused=refused,
        at=datetime.now(UTC),
    )
    path = _path(corpus, key)
    objects = corpus.store.objects
    if objects.exists(path):
        objects.replace(path, position.to_json())
    else:
        objects.create(path, position.to_json())


def forget_position(corpus: BaseCorpus, key: str) -> None:
    """The file was read to its end: the next import of it looks at all of it again."""
    corpus.store.objects.delete(_path(corpus, key))


def _path(corpus: BaseCorpus, key: str) -> str:
    return f"{_folder(corpus)}/{key}.json"


def _folder(corpus: BaseCorpus) -> str:
    return f"imports/{corpus.record.table}"
