"""Workers of a Ray cluster, or those that Ray starts on this machine.

Ray places and restarts processes; what goes on in them are the same named functions as everywhere. Arguments go as JSON text and
results as bytes, so that nothing but this module's two small functions is ever pickled. Does not know what tasks do.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import treering
from treering.engine.base import AHEAD, decode_error, encode_error, find_task, is_of_this_machine
from treering.errors import StoreError, TreeringError, UsageError

__all__ = ["RayEngine"]

#: A task whose worker died is begun again so many times: machines of a cluster come and go. What tasks of `map` do leaves nothing
#: behind but files that nobody names.
_AGAIN = 2
#: Seconds that a connection to the cluster may take to come about. Ray by itself tries for minutes.
_CONNECT_S = 5.0
#: How HTTP/2 begins, which gRPC speaks: its preface and empty settings. A server answers with its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
#: What is awaited from a task is awaited so many seconds; then the cluster is looked at, and awaited again if it is there.
_TICK_S = 5.0
#: A cluster that couldn't be reached for so many seconds is taken for gone. Its head may be begun again meanwhile; after 60 s without
#: it Ray would end this process.
_GONE_S = 20.0


class RayEngine:
    """Runs tasks on Ray; see `Engine`.

    Ray is begun by `check_reach` or the first task, unless it is already: the cluster that RAY_ADDRESS names, else one of this machine,
    of so many `slots` (as cores, unless given), that ends with `close`. All machines need the same treering; stores and files have to
    be where each of them finds them. Signal handlers, `sys.excepthook` and the environment stay as they were, as long as the main
    thread begins Ray: only there Python can set a signal's handler.

    Raises UsageError when Ray isn't installed.
    """

    name = "ray"

    def __init__(self, slots: int | None = None) -> None:
        try:
            with _left_alone():
                import ray
        except ImportError as exc:
            if sys.version_info >= (3, 14):
                raise UsageError(
                    "there is no Ray for Python 3.14 yet",
                    code="missing-package",
                    hint="use Python 3.11 to 3.13, or --engine local",
                ) from exc
            raise UsageError(
                "Ray isn't installed", code="missing-package", hint="pip install 'treering[ray]', or --engine local"
            ) from exc
        self._ray = ray
        self._cores = slots
        self._lock = threading.Lock()
        self._is_ours = False  # whether `close` ends it
        self._one: Any = None
        self._many: Any = None

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """Cores of the cluster."""
        self._begin()
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def check_reach(self, *uris: str) -> None:
        """See `Engine.check_reach`."""
        self._begin()  # also for what all machines reach: later it may be another thread that comes first
        own = [uri for uri in uris if is_of_this_machine(uri)]
        if not own:
            return
        nodes = sum(bool(node.get("Alive")) for node in self._ray.nodes())
        if nodes > 1:
            raise UsageError(
                f"{own[0]} is a path of this machine, and this Ray cluster has {nodes} machines",
                code="not-shared",
                hint="use an object store (s3://…) that all of them reach, or --engine local",
            )

    def stream(self, task: str, arguments: Mapping[str, Any], *, ahead: int = AHEAD) -> Iterator[bytes]:
        """See `Engine.stream`."""
        self._begin()
        made = self._many.options(name=task, _generator_backpressure_num_objects=max(1, ahead))
        return _Stream(self, task, made.remote(*_said(task, arguments)))

    def map(self, task: str, each: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Engine.map`. A call whose worker died is made again, twice at most."""
        slots = self.slots
        going: deque[tuple[Any, Mapping[str, Any]]] = deque()
        try:
            for arguments in each:
                going.append((self._call(task, arguments), arguments))
                if len(going) > slots:  # one more than can go on: the next one is there when a worker is done
                    yield self._result(task, *going.popleft())
            while going:
                yield self._result(task, *going.popleft())
        finally:
            for made, _ in going:
                self._cancel(made)

    def close(self) -> None:
        """End Ray, if this engine began it."""
        with self._lock:
            if self._is_ours:
                self._is_ours = False
                with _left_alone():
                    self._ray.shutdown()

    def _begin(self) -> None:
        with self._lock:
            if not self._ray.is_initialized():
                address = os.environ.get("RAY_ADDRESS") or "local"
                if address.startswith("ray://"):
                    raise UsageError(
                        "RAY_ADDRESS names a Ray Client server, through which results can't be streamed",
                        code="bad-address",
                        hint="run the command on a machine of the cluster (ray job submit), or name its GCS: HOST:6379",
                    )
                how: dict[str, Any] = (
                    {"include_dashboard": False, "num_cpus": self._cores} if address == "local" else {}
                )
                try:
                    if address != "local":
                        _check_there(address)
                    with _left_alone(), warnings.catch_warnings():
                        # Ray begins its processes by fork and exec; Lance warns of the former, and is gone by the latter.
                        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
                        warnings.filterwarnings("ignore", message="lance is not fork-safe")
                        warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)
                        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a library's user wasn't asked
                        self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **how)
                except (OSError, RuntimeError, ValueError) as exc:
                    raise _unreachable(address, exc) from exc
                self._is_ours = True
            if self._one is None:
                # Not begun again by Ray: `map` does it, and says what died when that doesn't help.
                self._one = self._ray.remote(num_cpus=1, max_retries=0)(_run)
                self._many = self._ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_run_stream)

    def _call(self, task: str, arguments: Mapping[str, Any]) -> Any:
        return self._one.options(name=task).remote(*_said(task, arguments))

    def _result(self, task: str, made: Any, arguments: Mapping[str, Any]) -> bytes:
        for left in reversed(range(_AGAIN + 1)):
            try:
                return self.taken(task, made)
            except StoreError as exc:
                if exc.code != "worker-died" or not left:
                    raise
                made = self._call(task, arguments)
        raise AssertionError

    def taken(self, task: str, made: Any) -> bytes:
        """The bytes of one result; raises what the task raised."""
        try:
            self.awaited(task, made)
            with _exit_code_kept():
                found: bytes = self._ray.get(made)
        except self._ray.exceptions.RayError as exc:
            raise self.failure(task, exc) from exc
        letter, data = found[:1], found[1:]
        if letter == b"E":
            raise decode_error(data)
        return data

    def awaited(self, task: str, made: Any) -> None:
        """Wait for one result, or for the next one of a stream. Raises StoreError when the cluster is gone."""
        gone_since = None
        while True:
            with _exit_code_kept():
                if self._ray.wait([made], timeout=_TICK_S)[0]:
                    return
            if self._is_there():
                gone_since = None
                continue
            gone_since = gone_since or time.monotonic()
            if time.monotonic() - gone_since >= _GONE_S:
                raise StoreError(
                    f"the Ray cluster of {task} can't be reached any more",
                    code="no-worker",
                    hint="what was done is kept, and the same command goes on when the cluster is there again",
                )

    def _is_there(self) -> bool:
        """Whether the cluster's head takes connections."""
        try:
            _check_there(self._ray.get_runtime_context().gcs_address)
        except OSError:
            return False
        return True

    def failure(self, task: str, exc: Exception) -> TreeringError:
        """What Ray says of a task that it couldn't bring to an end."""
        known = self._ray.exceptions
        told = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        if isinstance(exc, known.RayTaskError | known.RaySystemError | known.RuntimeEnvSetupError):
            return StoreError(
                f"a worker couldn't begin {task}: {told}",
                code="task-failed",
                hint=f"treering {treering.__version__} has to be installed on every machine of the cluster",
            )
        return StoreError(
            f"the worker of {task} died: {type(exc).__name__}: {told}",
            code="worker-died",
            hint="what it had done is kept, and the same command goes on; a lack of memory kills so (dmesg says)",
        )

    def _cancel(self, made: Any) -> None:
        if self._ray.is_initialized():
            with suppress(Exception):  # it may just have ended, or all of Ray may
                self._ray.cancel(made, force=True)


class _Stream:
    """The results of one task, as they come."""

    def __init__(self, engine: RayEngine, task: str, made: Any) -> None:
        self._engine = engine
        self._task = task
        self._made: Any = made

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._made is None:
            raise StopIteration
        try:
            try:
                self._engine.awaited(self._task, self._made)
                with _exit_code_kept():
                    made = next(self._made)
            except StopIteration:
                self._made = None
                raise
            except self._engine._ray.exceptions.RayError as exc:
                raise self._engine.failure(self._task, exc) from exc
            return self._engine.taken(self._task, made)
        except TreeringError:
            self._made = None
            raise
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the task."""
        made, self._made = self._made, None
        if made is not None:
            self._engine._cancel(made)

    def __del__(self) -> None:
        self.close()


def _check_there(address: str) -> None:
    """Ask the HOST:PORT of a cluster's head for a word. Raises OSError; leaves addresses that are written otherwise to Ray."""
    if address == "auto":
        from ray._private.services import get_ray_address_from_environment  # what `init` asks

        address = str(get_ray_address_from_environment("auto", None))
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and len(port) <= 5:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S) as head:
                head.sendall(_GREETING)
                head.recv(1)  # a word or the end: something is there. What it is, Ray finds out within some 20 s
        except TimeoutError as exc:
            raise TimeoutError(f"nothing answered within {_CONNECT_S:g} s") from exc


def _unreachable(address: str, exc: Exception) -> StoreError:
    told = (str(exc).splitlines() or [type(exc).__name__])[0]
    if "AuthenticationError" in f"{type(exc).__name__} {exc} {exc.__cause__}":
        told = "it asks for a token"
    return StoreError(
        f"can't reach Ray at {address}: {told}",
        code="no-worker",
        hint="RAY_ADDRESS names the head of the cluster as HOST:PORT; without it Ray runs on this machine. A cluster that asks for a "
        "token takes RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token",
    )


@contextmanager
def _left_alone() -> Iterator[None]:
    """Undo what Ray does to its caller's process: handlers of signals, `sys.excepthook`, environment variables.

    Its handler of SIGTERM would end a command with 15 and without what the command does then, and beneath it another one prints a
    stack. Signals can be set by the main thread alone.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)} if is_main else {}
    environment, hook = dict(os.environ), sys.excepthook
    told = False
    try:
        yield
    except SystemExit as exc:  # SIGTERM came while Ray's handler was there
        told = is_main and exc.code == signal.SIGTERM
        if not told:
            raise
    finally:
        sys.excepthook = hook
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for one, handler in before.items():
            if handler is not None:  # else it wasn't set by Python
                signal.signal(one, handler)
    if told:
        signal.raise_signal(signal.SIGTERM)
        raise ConnectionAbortedError("SIGTERM came meanwhile")


@contextmanager
def _exit_code_kept() -> Iterator[None]:
    """Leave with the code that a signal's handler asked for. Ray raises SystemExit(1) instead, and keeps the code in words only."""
    try:
        yield
    except SystemExit as exc:
        asked = re.search(r"Exit code: (\d+)", getattr(exc, "ray_terminate_msg", ""))
        if asked is None:
            raise
        raise SystemExit(int(asked[1])) from exc


def _said(task: str, arguments: Mapping[str, Any]) -> tuple[str, str, str]:
    here = os.getcwd()
    caller = {"version": treering.__version__, "folder": here, "path": [one or here for one in sys.path]}
    return task, json.dumps(dict(arguments)), json.dumps(caller)


def _prepare(caller: str) -> None:
    """See to it that this worker finds what its caller finds. Raises StoreError for another treering."""
    said = json.loads(caller)
    version = said["version"]
    if version != treering.__version__:
        raise StoreError(
            f"a worker has treering {treering.__version__}, and {version} sent it a task",
            code="other-version",
            hint="install the same version on every machine of the cluster",
        )
    sys.path += [one for one in said["path"] if one not in sys.path and os.path.isdir(one)]
    if os.path.isdir(said["folder"]):  # of the same machine: names of files are relative to it
        os.chdir(said["folder"])


def _run(task: str, arguments: str, caller: str) -> bytes:
    """In a worker: one call of a function."""
    try:
        _prepare(caller)
        return b"R" + bytes(find_task(task)(**json.loads(arguments)))
    except BaseException as exc:
        return b"E" + encode_error(task, exc)


def _run_stream(task: str, arguments: str, caller: str) -> Iterator[bytes]:
    """In a worker: the results of a generator function."""
    try:
        _prepare(caller)
        for result in find_task(task)(**json.loads(arguments)):
            yield b"R" + bytes(result)
    except GeneratorExit:
        raise
    except BaseException as exc:
        yield b"E" + encode_error(task, exc)
