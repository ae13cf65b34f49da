"""Tell a webhook what a round came to: one POST of JSON, a few tries. That it fails is reported and changes nothing."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

from treering.rounds.documents import Notified

__all__ = ["notify"]

_PAUSE_S = 0.5  # before the second try; doubles


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET somewhere else, and might leave http."""

    def redirect_request(self, *_: Any) -> None:
        return None


def notify(url: str, body: bytes, *, run: str, timeout_s: float, tries: int) -> Notified:
    """POST `body` (JSON) to `url`, or to where the environment variable `$NAME` says.

    An answer of 2xx ends it; one of 4xx, but for 408 and 429, too: asking again won't help. `run` is sent as
    `Idempotency-Key`: a round that was killed while it told may tell again.
    """
    where = os.environ.get(url[1:], "") if url.startswith("$") else url
    if not where.startswith(("http://", "https://")):
        return _said(False, 0, f"{url} names no http(s) URL")
    request = urllib.request.Request(  # noqa: S310 - http(s), checked above
        where,
        data=body,
        method="POST",
        headers={"Content-Type": "application/json", "User-Agent": "treering", "Idempotency-Key": run},
    )
    opener = urllib.request.build_opener(_NoRedirect)
    said = ""
    for attempt in range(1, tries + 1):
        if attempt > 1:
            time.sleep(_PAUSE_S * 2 ** (attempt - 2))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return _said(True, attempt, f"answered {answer.status}")
        except urllib.error.HTTPError as exc:
            said = f"answered {exc.code}"
            exc.close()
            if 400 <= exc.code < 500 and exc.code not in (408, 429):
                return _said(False, attempt, said)
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "reason", exc)
            said = f"couldn't be reached: {reason}"
    return _said(False, tries, said)


def _said(ok: bool, tries: int, says: str) -> Notified:
    return Notified(ok=ok, tries=tries, says=says, at=datetime.now(UTC))
