"""Power cuts: from the recorded writes and syncs of a real run, the states that a disk may be in after one.

A run is recorded by strace: every write with its bytes, every sync, every change of a directory. `Disk` replays them and
knows of each file and directory what a sync has made last, and what only the system knew. A crash state keeps all of the
former, and of the latter whatever it likes: nothing, everything, zeros of the right length, some sectors, some names.
That is harsher than any one file system: names outlive a power cut only when their directory was synced.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("power_worker.py")
SECTOR = 512
MODES = ("lost", "kept", "zeroed", "torn", "mixed")

_TRACED = (
    "openat,creat,write,pwrite64,writev,pwritev,lseek,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,"
    "link,linkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,close,copy_file_range,sendfile,dup,dup2"
)
_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += +(-?\d+|\?)(?:<(.*?)>)?(?:\(deleted\))?(?: .*)?$", re.DOTALL)
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_AT = re.compile(r"^(-?\w+)(?:<(.*?)>)?(\(deleted\))?$")


def can_trace() -> str | None:
    """Why nothing can be recorded here; None when it can."""
    if shutil.which("strace") is None:
        return "strace isn't installed (apt-get install strace)"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace can't trace here: {tried.stderr.strip()[:200]}"


def record(store: Path, scene: str, trace: Path) -> None:
    """Run the worker on a store, and write down what it did to the disk."""
    command = ["strace", "-f", "-qq", "-y", "-xx", "-s", "100000000", "--seccomp-bpf", "-e", f"trace={_TRACED}"]
    command += ["-e", "signal=none", "-o", str(trace), sys.executable, str(WORKER), str(store), scene]
    subprocess.run(command, check=True, capture_output=True, timeout=240)


@dataclass
class Call:
    """A system call that succeeded: its name, its arguments as strace writes them, its result, and the result's path."""

    name: str
    arguments: list[str]
    result: int
    path: str | None


def calls(trace: Path) -> Iterator[Call]:
    """The calls in the order in which they ended: a sync counts from its end on."""
    begun: dict[str, str] = {}
    for line in trace.read_text("ascii", "replace").splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        pid, text = found[1], found[2]
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>")
            continue
        if text.startswith("<... "):
            text = begun.pop(pid, "") + text.partition(" resumed>")[2]
        call = _CALL.match(text)
        if call is None or call[3] == "?" or int(call[3]) < 0:
            continue
        yield Call(call[1], _split(call[2]), int(call[3]), _plain(call[4]) if call[4] else None)


def _split(text: str) -> list[str]:
    """Arguments at the top level: quoted texts and paths in <> stay whole."""
    parts, depth, quoted, start = [], 0, False, 0
    for at, c in enumerate(text):
        if c == '"':
            quoted = not quoted
        elif not quoted and c in "<[{(":
            depth += 1
        elif not quoted and c in ">]})":
            depth -= 1
        elif c == "," and not quoted and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _plain(text: str) -> str:
    """With -xx strace writes paths in hex, too."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), text)


def _bytes(argument: str) -> bytes:
    found = _BYTES.fullmatch(argument)
    assert found is not None and not found[2], argument[:80]  # noqa: PT018
    return bytes.fromhex(found[1].replace("\\x", ""))


def _name(argument: str) -> str:
    return _bytes(argument).decode()


@dataclass
class File:
    """A file: what a sync made last, and what has been done to it since."""

    durable: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)  # (offset, bytes) or a truncation to a length

    def write(self, offset: int, data: bytes) -> None:
        if len(self.content) < offset:
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        self.pending.append((offset, data))

    def truncate(self, length: int) -> None:
        if length < len(self.content):
            del self.content[length:]
        else:
            self.content.extend(bytes(length - len(self.content)))
        self.pending.append(length)

    def sync(self) -> None:
        self.durable, self.pending = bytes(self.content), []

    def after(self, mode: str, choose: random.Random) -> bytes:
        """What it may hold after a power cut."""
        if not self.pending or mode == "kept":
            return bytes(self.content)
        if mode == "lost":
            return self.durable
        if mode == "zeroed":  # the new length is there, the new bytes aren't
            return self.durable[: len(self.content)].ljust(len(self.content), b"\0")
        kept = File(self.durable, bytearray(self.durable))
        stop = choose.randrange(len(self.pending) + 1)
        for number, done in enumerate(self.pending):
            if isinstance(done, int):
                if number < stop or choose.random() < 0.3:
                    kept.truncate(done)
                continue
            offset, data = done
            at = offset
            while at < offset + len(data):  # a sector is written as a whole or not at all
                end = min((at // SECTOR + 1) * SECTOR, offset + len(data))
                if number < stop or choose.random() < 0.5:
                    kept.write(at, data[at - offset : end - offset])
                at = end
        return bytes(kept.content)


@dataclass
class Directory:
    """A directory: its names after the last sync, and what has been done to them since: (name, what it names now)."""

    durable: dict[str, File | Directory] = field(default_factory=dict)
    names: dict[str, File | Directory] = field(default_factory=dict)
    pending: list[dict[str, File | Directory | None]] = field(default_factory=list)

    def change(self, changes: dict[str, File | Directory | None]) -> None:
        for name, target in changes.items():
            if target is None:
                self.names.pop(name, None)
            else:
                self.names[name] = target
        self.pending.append(changes)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.names), []

    def after(self, mode: str, choose: random.Random) -> dict[str, File | Directory]:
        kept = dict(self.durable)
        stop = {"lost": 0, "kept": len(self.pending)}.get(mode, choose.randrange(len(self.pending) + 1))
        for number, changes in enumerate(self.pending):
            if number < stop or (mode == "mixed" and choose.random() < 0.3):
                for name, target in changes.items():
                    if target is None:
                        kept.pop(name, None)
                    else:
                        kept[name] = target
        return kept


class Disk:
    """The store's part of a disk, replayed call by call; and what the worker had said by then."""

    def __init__(self, before: Path, where: Path) -> None:
        self._where = str(where)
        self.root = self._load(before)
        self.said: list[dict[str, Any]] = []
        self._out = b""
        self._offsets: dict[int, int] = {}
        self._unnamed: dict[int, File] = {}  # by descriptor: files that have no name yet, or none any more
        self.changed = False  # whether the last call changed or synced anything

    def _load(self, path: Path) -> Directory:
        found = Directory()
        for child in path.iterdir():
            if child.is_dir():
                found.names[child.name] = self._load(child)
            else:
                data = child.read_bytes()
                found.names[child.name] = File(data, bytearray(data))
        found.sync()
        return found

    def _find(self, path: str | None) -> tuple[Directory, str] | None:
        """The directory that holds a path, and the name in it; None for what isn't in the store."""
        if path is None or not path.startswith(self._where + "/"):
            return None
        *folders, name = path[len(self._where) + 1 :].split("/")
        here = self.root
        for folder in folders:
            found = here.names.get(folder)
            if not isinstance(found, Directory):
                return None
            here = found
        return here, name

    def _at(self, path: str | None) -> File | Directory | None:
        if path == self._where:
            return self.root
        found = self._find(path)
        return found[0].names.get(found[1]) if found else None

    def _of(self, argument: str) -> tuple[int, str | None]:
        """Descriptor and its path, of an argument such as `5</store/x>`."""
        found = _AT.match(argument)
        assert found is not None, argument
        path = _plain(found[2]) if found[2] and not found[3] else None  # what has no name any more is nobody's loss
        return int(found[1]) if found[1].lstrip("-").isdigit() else -100, path

    def _path(self, folder: str, name: str) -> str:
        given = _name(name)
        if given.startswith("/"):
            return given
        return f"{self._of(folder)[1]}/{given}"

    def do(self, call: Call) -> None:
        """Replay one call."""
        self.changed = False
        a, name = call.arguments, call.name
        if name in ("openat", "creat"):
            self._open(call)
        elif name in ("write", "pwrite64"):
            self._write(call)
        elif name == "lseek":
            self._offsets[self._of(a[0])[0]] = call.result
        elif name == "close":
            self._offsets.pop(self._of(a[0])[0], None)
            self._unnamed.pop(self._of(a[0])[0], None)
        elif name in ("fsync", "fdatasync"):
            target = self._at(self._of(a[0])[1]) or self._unnamed.get(self._of(a[0])[0])
            if target is not None:
                target.sync()
                self.changed = True
        elif name == "ftruncate":
            target = self._at(self._of(a[0])[1])
            if isinstance(target, File):
                target.truncate(int(a[1]))
                self.changed = True
        elif name in ("link", "rename", "linkat", "renameat", "renameat2"):
            old, new = (_name(a[0]), _name(a[1])) if name in ("link", "rename") else (
                self._path(a[0], a[1]), self._path(a[2], a[3]))  # fmt: skip
            self._link(old, new, moved=name.startswith("rename"))
        elif name in ("unlink", "rmdir", "unlinkat"):
            found = self._find(_name(a[0]) if name != "unlinkat" else self._path(a[0], a[1]))
            if found:
                found[0].change({found[1]: None})
                self.changed = True
        elif name in ("mkdir", "mkdirat"):
            found = self._find(_name(a[0]) if name == "mkdir" else self._path(a[0], a[1]))
            if found:
                found[0].change({found[1]: Directory()})
                self.changed = True
        else:  # one that isn't replayed must not touch the store
            assert not any(self._where in _plain(argument) for argument in a), (name, a)

    def _open(self, call: Call) -> None:
        flags = call.arguments[2]
        self._offsets[call.result] = 0
        if "O_TMPFILE" in flags:
            self._unnamed[call.result] = File()
            return
        found = self._find(call.path)
        if found is None or ("O_CREAT" not in flags and "O_TRUNC" not in flags):
            return
        target = found[0].names.get(found[1])
        if target is None and "O_CREAT" in flags:
            target = File()
            found[0].change({found[1]: target})
            self.changed = True
        assert isinstance(target, File), call
        if "O_TRUNC" in flags and target.content:
            target.truncate(0)
            self.changed = True
        if "O_APPEND" in flags:
            self._offsets[call.result] = len(target.content)

    def _write(self, call: Call) -> None:
        descriptor, path = self._of(call.arguments[0])
        if descriptor == 1:
            self._out += _bytes(call.arguments[1])[: call.result]
            *lines, self._out = self._out.split(b"\n")
            self.said += [json.loads(line) for line in lines]
            return
        target = self._at(path) or self._unnamed.get(descriptor)
        if not isinstance(target, File):
            return
        data = _bytes(call.arguments[1])[: call.result]
        if call.name == "pwrite64":
            target.write(int(call.arguments[3]), data)
        else:
            at = self._offsets.get(descriptor, len(target.content))
            target.write(at, data)
            self._offsets[descriptor] = at + len(data)
        self.changed = True

    def _link(self, old: str, new: str, *, moved: bool) -> None:
        source, target = self._find(old), self._find(new)
        if old.startswith("/proc/self/fd/") and target is not None:
            target[0].change({target[1]: self._unnamed[int(old.rpartition("/")[2])]})
            self.changed = True
        if source is None or target is None:
            return
        what = source[0].names[source[1]]
        if moved and source[0] is target[0]:
            target[0].change({source[1]: None, target[1]: what})
        else:
            target[0].change({target[1]: what})
            if moved:
                source[0].change({source[1]: None})
        self.changed = True

    def crash(self, into: Path, mode: str, choose: random.Random) -> None:
        """Write down a state that the disk may be in if the power goes now."""
        self._put(self.root, into, mode, choose)

    def _put(self, directory: Directory, into: Path, mode: str, choose: random.Random) -> None:
        into.mkdir()
        one = choose.choice(MODES[:4]) if mode == "mixed" else mode
        for name, target in directory.after(mode, choose).items():
            if isinstance(target, Directory):
                self._put(target, into / name, mode, choose)
            else:
                (into / name).write_bytes(target.after(one, choose))
                if mode == "mixed":
                    one = choose.choice(MODES[:4])
