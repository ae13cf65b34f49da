"""Redaction at capture: secrets and obvious personal data in the text of records give way to markers such as `[EMAIL]`.

What is known by its form is found, offline and without a model: keys and tokens by the patterns of `detect-secrets`, phone
numbers by `phonenumbers` (with their country code, +49 …; others can't be told from order numbers), card numbers and IBANs
by their check digits (`python-stdnum`), e-mail and IP addresses. Not found: names, addresses, passwords in plain prose,
whatever is split or misspelt. It lowers the risk, and is no promise; what has to go goes by `erase`.

The same text always gives the same text, so a record that is sent twice stays one. Pure, but for the libraries' imports.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from treering.errors import UsageError

__all__ = ["KINDS", "Kind", "Redactor", "redaction_kinds"]

Kind = Literal["secret", "email", "iban", "card", "ip", "phone"]

#: In the order in which they are looked for: what is found first is gone for those after it.
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Columns that say what a record is and where it belongs; the rest is what it says.
_NOT_TEXT = frozenset(["id", "session_id", "subject", "domain", "ts", "split", "origin"])

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----.*?(-----END [A-Z ]*PRIVATE KEY( BLOCK)?-----|\Z)", re.S
)
_TOKEN_GOES_ON = re.compile(r"[A-Za-z0-9_\-.+/=]*")
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?![\w:])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w])")
_PHONE = re.compile(r"\+\d(?:[\s().\-/]{0,3}\d){6,14}")

Span = tuple[int, int]


def redaction_kinds(given: bool | Iterable[str]) -> tuple[Kind, ...]:
    """What to redact: True is everything, False nothing, else names of `KINDS`. Raises UsageError.

    The libraries are looked for here: a recorder that is told to redact must not find out later that it can't.
    """
    if isinstance(given, bool):
        kinds = KINDS if given else ()
    else:
        named = set(given) if not isinstance(given, str) else {given}
        unknown = sorted(map(str, named - set(KINDS)))
        if unknown:
            raise UsageError(
                f"there is nothing called {', '.join(unknown)} to redact",
                code="bad-redact",
                hint=f"one of {', '.join(KINDS)}",
            )
        kinds = tuple(kind for kind in KINDS if kind in named)
    if kinds:
        try:
            _detectors()
            import phonenumbers  # noqa: F401
            import stdnum  # noqa: F401
        except ImportError as exc:
            raise UsageError(
                f"redaction needs libraries that aren't installed: {exc}",
                code="missing-extra",
                hint="pip install 'treering[redact]'",
            ) from exc
    return kinds


class Redactor:
    """Redacts some kinds of things. Thread-safe; `counts` is left to the caller, who passes it in."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = tuple(kinds)
        self._find: list[tuple[str, Callable[[str], Iterator[Span]]]] = [
            (f"[{kind.upper()}]", _FINDERS[kind]) for kind in self.kinds
        ]

    def text(self, text: str, counts: Counter[str]) -> str:
        """The text with a marker for each thing that was found."""
        for marker, find in self._find:
            spans = list(find(text))
            if spans:
                text, found = _marked(text, spans, marker)
                counts[marker] += found
        return text

    def value(self, value: Any, counts: Counter[str]) -> Any:
        """A JSON value with all its texts redacted; keys and numbers stay, unless a number is a card's."""
        if isinstance(value, str):
            return self.text(value, counts)
        if isinstance(value, dict):
            return {key: self.value(item, counts) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item, counts) for item in value]
        if isinstance(value, int) and not isinstance(value, bool):
            text = self.text(str(value), counts)
            return value if text == str(value) else text
        return value

    def batch(self, batch: pa.RecordBatch, counts: Counter[str]) -> pa.RecordBatch:
        """A batch of validated records: what they say, and `meta`; not what they are called and where they belong."""
        columns = []
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if field.name in _NOT_TEXT:
                columns.append(column)
            elif field.name == "meta":
                columns.append(_mapped(column, lambda text: self._json(text, counts)))
            else:
                columns.append(self._column(column, counts))
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)

    def _json(self, text: str, counts: Counter[str]) -> str:
        found: Counter[str] = Counter()
        try:
            redacted = json.dumps(self.value(json.loads(text), found), ensure_ascii=False)
        except (ValueError, RecursionError):
            return self.text(text, counts)
        counts.update(found)
        return redacted if found else text

    def _column(self, column: Any, counts: Counter[str]) -> Any:
        kind = column.type
        t = pa.types
        if t.is_string(kind) or t.is_large_string(kind):
            return _mapped(column, lambda text: self.text(text, counts))
        if t.is_list(kind) or t.is_large_list(kind):
            # By the values that the lists refer to: an array may be a slice of another one.
            values = self._column(column.flatten(), counts)
            lengths = np.asarray(pa.compute.list_value_length(column).fill_null(0))
            offsets = pa.array(
                np.concatenate([[0], np.cumsum(lengths)]), pa.int64() if t.is_large_list(kind) else pa.int32()
            )
            made = pa.LargeListArray if t.is_large_list(kind) else pa.ListArray
            mask = column.is_null() if column.null_count else None
            return made.from_arrays(offsets, values, type=kind, mask=mask)
        if t.is_struct(kind):
            children = [self._column(child, counts) for child in column.flatten()]
            mask = column.is_null() if column.null_count else None
            return pa.StructArray.from_arrays(children, fields=list(kind), mask=mask)
        return column


def _mapped(column: Any, redact: Callable[[str], str]) -> Any:
    texts = column.to_pylist()
    return pa.array([None if text is None else redact(text) for text in texts], column.type)


def _marked(text: str, spans: Sequence[Span], marker: str) -> tuple[str, int]:
    """The text with the spans (in any order, overlapping ones as one) replaced, and how many there were."""
    parts, last, found = [], 0, 0
    end = -1
    for low, high in sorted(spans):
        if low < end:
            end = max(end, high)
            last = max(last, end)
            continue
        parts += [text[last:low], marker]
        last, end, found = high, high, found + 1
    return "".join([*parts, text[last:]]), found


# --- finding -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _detectors() -> tuple[list[Any], list[Any], Any, re.Pattern[str]]:
    """(patterns of keys and tokens, those whose first group is the secret, the detector of `password = "…"`, its words).

    Of `detect-secrets`, those that go by a form of their own; guesses by randomness would take hashes and ids along.
    """
    from detect_secrets.plugins.artifactory import ArtifactoryDetector
    from detect_secrets.plugins.aws import AWSKeyDetector
    from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
    from detect_secrets.plugins.basic_auth import BasicAuthDetector
    from detect_secrets.plugins.discord import DiscordBotTokenDetector
    from detect_secrets.plugins.github_token import GitHubTokenDetector
    from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
    from detect_secrets.plugins.jwt import JwtTokenDetector
    from detect_secrets.plugins.keyword import DENYLIST, KeywordDetector
    from detect_secrets.plugins.mailchimp import MailchimpDetector
    from detect_secrets.plugins.npm import NpmDetector
    from detect_secrets.plugins.openai import OpenAIDetector
    from detect_secrets.plugins.pypi_token import PypiTokenDetector
    from detect_secrets.plugins.sendgrid import SendGridDetector
    from detect_secrets.plugins.slack import SlackDetector
    from detect_secrets.plugins.square_oauth import SquareOAuthDetector
    from detect_secrets.plugins.stripe import StripeDetector
    from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
    from detect_secrets.plugins.twilio import TwilioKeyDetector

    whole = [
        ArtifactoryDetector, AWSKeyDetector, AzureStorageKeyDetector, DiscordBotTokenDetector, GitHubTokenDetector,
        GitLabTokenDetector, JwtTokenDetector, MailchimpDetector, NpmDetector, OpenAIDetector, PypiTokenDetector,
        SendGridDetector, SlackDetector, SquareOAuthDetector, StripeDetector, TelegramBotTokenDetector, TwilioKeyDetector,
    ]  # fmt: skip
    patterns = [pattern for detector in whole for pattern in detector().denylist]
    words = re.compile("|".join(DENYLIST), re.IGNORECASE)
    return patterns, list(BasicAuthDetector().denylist), KeywordDetector(), words


def _secrets(text: str) -> Iterator[Span]:
    for match in _PRIVATE_KEY.finditer(text):
        yield match.span()
    whole, first_group, assigned, words = _detectors()
    for pattern in whole:
        for match in pattern.finditer(text):
            # Some patterns end early, or are content with the beginning of a token: the rest goes with it.
            goes_on = _TOKEN_GOES_ON.match(text, match.end())
            end = match.end() if goes_on is None else match.end() + len(goes_on[0].rstrip("."))
            yield match.start(), end
    for pattern in first_group:
        for match in pattern.finditer(text):
            yield match.span(1)
    for line in text.splitlines():
        if not words.search(line):  # without its words it finds nothing, and takes four times as long as all the others
            continue
        for secret in set(assigned.analyze_string(line)):
            if len(secret) >= 4:
                yield from ((m.start(), m.end()) for m in re.finditer(re.escape(secret), text))


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[Span]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        for end in range(match.end(), match.start() + 14, -1):  # it may have taken a word that follows along
            if iban.is_valid(text[match.start() : end], check_country=False):
                yield match.start(), end
                break


def _cards(text: str) -> Iterator[Span]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if digits[0] in "23456" and luhn.is_valid(digits) and len(set(digits)) > 1:
            yield match.span()


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        yield from (match.span() for match in pattern.finditer(text))


def _phones(text: str) -> Iterator[Span]:
    if _PHONE.search(text):
        import phonenumbers

        for match in phonenumbers.PhoneNumberMatcher(text, None):
            yield match.start, match.end


_FINDERS: dict[Kind, Callable[[str], Iterator[Span]]] = {
    "secret": _secrets,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
    "phone": _phones,
}
