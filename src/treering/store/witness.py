"""The head witness: how far a table's history has reached the disk, kept outside the table.

The engine opens whatever manifest is the newest that it finds: one that is missing gives an older view without a word.
So the last version that was made durable is noted beside the table, with the SHA-256 of its manifest and the number of
the newest snapshot. It only ever grows. What is older than it says was rolled back; what is newer was never promised to
anybody, and can be taken back after a power cut.

One small file a table: two slots of a disk sector each, written in turns and synced, so that a torn write leaves the one
before. Knows versions and hashes; what they mean is up to `table`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import xxhash
from filelock import FileLock

from treering.errors import StoreError
from treering.store.durable import make_directory, sync_directory, sync_file

__all__ = ["HeadWitness", "Seen", "boot_id"]

_SLOT = 512  # a disk sector: written as a whole or not at all


@dataclass(frozen=True, slots=True)
class Seen:
    """What a witness says. `turn` counts its writings; `boot` names the boot that wrote it."""

    version: int
    manifest_sha256: str
    snapshots: int
    boot: str
    turn: int = 0


@cache
def boot_id() -> str:
    """Names this boot of the machine, "" where that can't be known.

    What was written in an earlier boot and never synced may be anything by now.
    """
    try:
        if sys.platform == "darwin":
            asked = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True)
            return asked.stdout.strip()
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class HeadWitness:
    """The witness of one table: the file `path`, guarded among processes by `lock`."""

    def __init__(self, path: Path, lock: Path) -> None:
        self.path = path
        self._lock = lock

    def read(self) -> Seen | None:
        """What it says; None when nothing has been noted. Raises StoreError when neither slot can be read."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StoreError(f"can't read {self.path}: {exc.strerror}", code="read-failed") from exc
        try:
            data = os.pread(descriptor, 2 * _SLOT, 0)
        finally:
            os.close(descriptor)
        found = [seen for at in (0, _SLOT) if (seen := _decode(data[at : at + _SLOT])) is not None]
        if not found:
            raise StoreError(
                f"{self.path} is damaged: what it knew of the table's newest version can't be read",
                code="witness-damaged",
                hint="see what there is, then write it anew: treering doctor --repair",
            )
        return max(found, key=lambda seen: seen.turn)

    def slots(self) -> int:
        """How many of its two slots can be read; fewer than were written after a torn write."""
        data = self.path.read_bytes()
        blank = sum(not data[at : at + _SLOT].strip() for at in (0, _SLOT))
        return blank + sum(_decode(data[at : at + _SLOT]) is not None for at in (0, _SLOT))

    def advance(self, version: int, manifest_sha256: str) -> None:
        """Note, durably, that this version and all it references are on disk. One that is older changes nothing."""
        seen = self.read()
        if seen is not None and seen.version >= version:
            return
        with self.held():
            seen = self.read()
            if seen is None:
                self._make(Seen(version, manifest_sha256, 0, boot_id()))
            elif seen.version < version:
                self.write(replace(seen, version=version, manifest_sha256=manifest_sha256, boot=boot_id()))

    def sealed(self, number: int) -> None:
        """Note, durably, that snapshot `number` has been sealed."""
        seen = self.read()
        if seen is None or seen.snapshots >= number:
            return
        with self.held():
            seen = self.read()
            if seen is not None and seen.snapshots < number:
                self.write(replace(seen, snapshots=number))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes and threads from writing it. Raises StoreError when that can't be had."""
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            # One of its own for each use: the kernel keeps threads apart by their descriptors.
            lock = FileLock(self._lock, timeout=60, thread_local=False)
            lock.acquire()
        except OSError as exc:  # Timeout is one
            raise StoreError(f"can't lock {self._lock}: {exc}", code="write-failed") from exc
        try:
            yield
        finally:
            lock.release()

    def write(self, seen: Seen) -> None:
        """Replace what it says, durably, whatever it said; the caller holds it."""
        seen = replace(seen, turn=seen.turn + 1)
        try:
            descriptor = os.open(self.path, os.O_WRONLY)
            try:
                os.pwrite(descriptor, _encode(seen), _SLOT * (seen.turn % 2))
                # The file keeps its size and its blocks: its data alone must reach the disk.
                getattr(os, "fdatasync", os.fsync)(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            self._make(seen)
        except OSError as exc:
            raise StoreError(f"can't write {self.path}: {exc.strerror}", code="write-failed") from exc

    def renew(self, seen: Seen) -> None:
        """Make the file anew; the caller holds it."""
        self._make(seen)

    def _make(self, seen: Seen) -> None:
        temporary = self.path.with_name(f"{self.path.name}#")
        try:
            make_directory(self.path.parent, below=self.path.parents[1])
            slots = [b" " * _SLOT, b" " * _SLOT]
            slots[seen.turn % 2] = _encode(seen)
            temporary.write_bytes(b"".join(slots))
            sync_file(temporary)
            os.replace(temporary, self.path)
            sync_directory(self.path.parent)
        except OSError as exc:
            raise StoreError(f"can't write {self.path}: {exc.strerror}", code="write-failed") from exc


def _encode(seen: Seen) -> bytes:
    text = json.dumps(asdict(seen), separators=(",", ":")).encode()
    line = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text
    return line.ljust(_SLOT - 1) + b"\n"


def _decode(slot: bytes) -> Seen | None:
    check, _, rest = slot.partition(b" ")
    text = rest.rstrip(b" \n")
    if len(slot) != _SLOT or xxhash.xxh3_64_hexdigest(text).encode() != check or _encode_is_other(slot, check, text):
        return None
    try:
        return Seen(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _encode_is_other(slot: bytes, check: bytes, text: bytes) -> bool:
    """Whether the padding isn't as it was written: a flipped bit there harms nothing, and is named all the same."""
    return slot != (check + b" " + text).ljust(_SLOT - 1) + b"\n"
