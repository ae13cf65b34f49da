"""Where a store lies: a local directory, or a prefix of a bucket on an object store.

Reads URIs and storage options, and says where the parts that need a local disk go: spools, leases and caches. Opens
nothing but the object client (objects) and knows no corpora (base).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from treering.errors import StoreError, UsageError
from treering.store.durable import make_directory

__all__ = [
    "SCHEMES",
    "Location",
    "StorageOptions",
    "is_remote",
    "private_dir",
    "remote_failure",
    "user_cache_dir",
    "user_state_dir",
]

#: Object stores that Lance and obstore both speak. S3 is what the tests run on.
SCHEMES = ("s3", "gs", "az")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEGMENT = re.compile(r"[A-Za-z0-9._=-]+")
_SECRET = re.compile(r"secret|token|password|credential|_key|sas|service_account")


class StorageOptions(Mapping[str, str]):
    """Options of an object store, by lower-case key. Holds credentials, so printing it shows keys alone."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str | int | bool]) -> None:
        if not isinstance(items, Mapping):
            raise UsageError(f"storage_options is a {type(items).__name__}; it is a dict of texts", code="bad-options")
        self._items: dict[str, str] = {}
        for key, value in items.items():
            if not isinstance(key, str) or not isinstance(value, str | int):
                raise UsageError(
                    f"the storage option {key!r} is a {type(value).__name__}; it is a text", code="bad-options"
                )
            self._items[key.lower()] = str(value).lower() if isinstance(value, bool) else str(value)

    def __getitem__(self, key: str) -> str:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getstate__(self) -> dict[str, str]:
        return self._items

    def __setstate__(self, items: dict[str, str]) -> None:
        self._items = items

    def __repr__(self) -> str:
        return f"StorageOptions({', '.join(sorted(self._items)) or 'none'})"

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of keys and values: tells clients of different options apart; kept in memory only."""
        return hashlib.sha256(repr(sorted(self._items.items())).encode()).hexdigest()

    def scrub(self, text: str) -> str:
        """The text without any secret of these options: a library may put into an error whatever it was given."""
        for key, value in self._items.items():
            if _SECRET.search(key) and len(value) >= 4:
                text = text.replace(value, "***")
        return text


@dataclass(frozen=True)
class Location:
    """Where a store lies. `root` is the directory of a local store, None on an object store."""

    uri: str
    root: Path | None
    options: StorageOptions = field(default_factory=lambda: StorageOptions({}))

    @classmethod
    def parse(cls, uri: str | Path, storage_options: Mapping[str, str | int | bool] | None = None) -> Location:
        """The place that a path, a `file://` URI or a URI such as `s3://bucket/prefix` names; looks nothing up.

        Raises UsageError for another scheme, and for a bucket, a prefix or options that can't be.
        """
        text = str(uri)
        scheme, separator, rest = text.partition("://")
        if isinstance(uri, Path) and text.partition(":/")[0] in SCHEMES:
            raise UsageError(f"{text} was given as a path", code="bad-uri", hint="give the URI as text: s3://…")
        if not separator or scheme.lower() == "file":
            if storage_options:
                raise UsageError(
                    "storage_options are for object stores, and this is a directory",
                    code="bad-options",
                    hint="leave them out, or name an s3://… store",
                )
            return cls.local(Path(rest if separator else text))
        if scheme.lower() not in SCHEMES:
            raise UsageError(
                f"{scheme}:// stores aren't supported",
                code="unsupported-scheme",
                hint="use a local directory or s3://bucket/prefix",
            )
        bucket, *segments = rest.rstrip("/").split("/")
        wrong = [s for s in segments if not _SEGMENT.fullmatch(s) or s in (".", "..")]
        if not _BUCKET.fullmatch(bucket) or wrong:
            # Not the text itself: it may hold credentials (s3://KEY:SECRET@bucket), which would end up in a log.
            raise UsageError(
                f"a {scheme}:// URI is a bucket and a prefix of a-z A-Z 0-9 . _ = - between slashes, and this isn't",
                code="bad-uri",
                hint="write s3://bucket/prefix; credentials belong into storage_options or the environment",
            )
        return cls("/".join([f"{scheme.lower()}://{bucket}", *segments]), None, StorageOptions(storage_options or {}))

    @classmethod
    def local(cls, root: Path) -> Location:
        """A directory. Raises UsageError for `~NAME` when there is no such user."""
        try:
            root = root.expanduser().absolute()
        except RuntimeError as exc:
            raise UsageError(
                f"{root.parts[0]} isn't the home of any user",
                code="bad-uri",
                hint=f"write ./{root} for a directory that is called so",
            ) from exc
        return cls(str(root), root)

    @property
    def scheme(self) -> str:
        """`s3`, `gs`, `az`, or `file`."""
        return self.uri.partition("://")[0] if self.root is None else "file"

    @property
    def bucket(self) -> str:
        """The bucket (container) of an object store."""
        return self.uri.partition("://")[2].partition("/")[0]

    def under(self, path: str) -> str:
        """URI of something in the store, by its path relative to the store."""
        return str(self.root / path) if self.root is not None else f"{self.uri}/{path}"

    def host_dir(self, store_id: str) -> Path:
        """Directory on this host's disk for spools and leases.

        Inside a local store; for an object store in the user's state directory, by the store's id and not by its URI:
        the same bucket name at another endpoint, or a store made anew, must never be given these records.
        """
        return self.root if self.root is not None else user_state_dir() / "stores" / store_id

    def cache_dir(self, store_id: str) -> Path:
        """Directory on this host's disk for what may be dropped at any time."""
        return self.root / "cache" if self.root is not None else user_cache_dir() / "stores" / store_id


def is_remote(uri: str) -> bool:
    """Whether a text names an object store."""
    return uri.partition("://")[0].lower() in SCHEMES and "://" in uri


def user_state_dir() -> Path:
    """Where acknowledged records of object stores wait on this host: TREERING_STATE_DIR, else the system's location.

    It must lie on a local disk that outlives the process (in a container: on a volume).
    """
    import platformdirs

    given = os.environ.get("TREERING_STATE_DIR")
    return Path(given).expanduser().absolute() if given else platformdirs.user_state_path("treering", appauthor=False)


def user_cache_dir() -> Path:
    """Where caches for object stores lie on this host: TREERING_CACHE_DIR, else the system's location."""
    import platformdirs

    given = os.environ.get("TREERING_CACHE_DIR")
    return Path(given).expanduser().absolute() if given else platformdirs.user_cache_path("treering", appauthor=False)


def private_dir(path: Path) -> Path:
    """The directory, made so that only its user can look into it: outside a store, records lie in a home directory.

    Raises StoreError when it can't be made.
    """
    try:
        make_directory(path, mode=0o700)
    except OSError as exc:
        raise StoreError(
            f"can't make {path}: {exc.strerror}",
            code="write-failed",
            hint="name another directory: TREERING_STATE_DIR, TREERING_CACHE_DIR",
        ) from exc
    return path


#: What servers and clients say, in the order it is looked for → code, what it means, what to do. The libraries give no
#: codes of their own, so their words are all there is to know a failure by.
_FAILURES: tuple[tuple[str, str, str, str], ...] = (
    (r"169\.254\.169\.254|metadata (?:endpoint|service)|CredentialProvider|credential provider", "no-credentials",
     "there are no credentials for it",
     "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give storage_options"),
    (r"NoSuchBucket|bucket does not exist|ContainerNotFound", "no-bucket",
     "there is no such bucket", "make the bucket first, or correct its name"),
    (r"InvalidBucketName", "no-bucket", "no bucket can have this name", "correct the name"),
    (r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|403 Forbidden|401 Unauthorized|AuthorizationHeaderMalformed",
     "access-denied", "the server refused the credentials",
     "check aws_access_key_id, aws_secret_access_key, aws_region, and what they are allowed to do"),
    (r"http (?:scheme|URLs?) (?:is|are) not allowed|URL scheme is not allowed|BadScheme", "bad-options",
     "the endpoint is http, not https", 'set allow_http="true" if that is meant'),
    (r"error sending request|ConnectError|Connection refused|dns error|timed out|TimedOut|Timeout|operation timed out",
     "store-unreachable", "the server can't be reached", "check aws_endpoint and the network, then try again"),
)  # fmt: skip


def remote_failure(what: str, text: str, location: Location) -> StoreError | None:
    """The error for a known kind of failure of an object store, by what the library said; None for any other kind."""
    if location.root is not None:
        return None
    for pattern, code, meaning, hint in _FAILURES:
        if re.search(pattern, text):
            return StoreError(f"{what} {location.uri}{_at_endpoint(location.options)}: {meaning}", code=code, hint=hint)
    return None


def _at_endpoint(options: StorageOptions) -> str:
    names = ("aws_endpoint", "aws_endpoint_url", "endpoint", "endpoint_url")
    endpoint = next((options[name] for name in names if name in options), None)
    if endpoint is None:
        return ""
    return f" at {urlsplit(endpoint).netloc.rpartition('@')[2] or 'its endpoint'}"  # whoever is named there stays out
