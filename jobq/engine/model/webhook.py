"""Webhooks: addresses that are told of events, in the format of Standard Webhooks (standardwebhooks.com)."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from datetime import UTC, datetime
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from jobq.engine.model.event import KINDS
from jobq.engine.model.job import State  # noqa: TC001 - msgspec reads it at run time
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from jobq.engine.model.views import JobRow

USUAL: Final = ("completed", "failed", "killed", "expired")
ROTATION_MS: Final = 24 * 3600 * 1000
"""The time for which deliveries are signed with the earlier secret, too."""
WEBHOOKS_MAX: Final = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
URL_MAX: Final = 2000


class Secret(msgspec.Struct, frozen=True):
    """A secret, and until when it signs (unix ms; None: until it is replaced)."""

    secret: str
    until: int | None = None


class StoredWebhook(msgspec.Struct, frozen=True):
    """The row of a webhook in Redis."""

    url: str
    events: list[str]
    types: list[str] | None
    secrets: list[Secret]
    enabled: bool
    created_at: int
    since: str
    """The cursor of the queue's events when it was made or enabled. It is told of no event before."""

    def __repr__(self) -> str:
        # The secrets must not get into a log or a traceback.
        return f"<StoredWebhook {self.url!r:.80}>"


class Webhook(msgspec.Struct, frozen=True):
    """A webhook as readers get it, without its secrets.

    ``events``: the names of the events that it is told of. ``types``: only those of jobs of these types; None: all.
    ``enabled``: whether it is told of events. ``disabled``: why jobq has stopped that by itself.
    ``failures``: failed attempts since the last delivery that succeeded. ``failing_since``: when the first of them was,
    unix ms. ``waiting``: deliveries that wait for one of its places. ``created_at``: unix ms.
    ``secret``: only in the answer that makes it. Nobody can read it later.
    """

    name: str
    queue: str
    url: str
    events: list[str]
    types: list[str] | None
    enabled: bool
    created_at: int
    disabled: str | None = None
    failures: int = 0
    failing_since: int | None = None
    waiting: int = 0
    secret: str | None = None

    def __repr__(self) -> str:
        return f"<Webhook {self.queue}:{self.name}>"


class WebhookDelivery(msgspec.Struct, frozen=True):
    """A delivery of a webhook that was tried. ``id``: that of its job, with the queue. ``event``: such as "completed",
    or "test". ``job``: about which job it is; None for a test. ``at``: when it ended or was tried last, unix ms.
    ``status``: of the answer that accepted it. ``error``: of the last attempt that failed."""

    id: str
    event: str
    job: str | None
    state: State
    attempts_made: int
    at: int
    status: int | None = None
    error: str | None = None


def delivery_of(row: JobRow) -> WebhookDelivery:
    """A delivery, from the row of its job."""
    about = row.metadata or {}
    last = row.errors[-1] if row.errors else None
    at = row.finished_at or row.started_at or (last.at if last else row.enqueued_at)
    status = int(bytes(row.result)) if row.result is not None and bytes(row.result).isdigit() else None
    return WebhookDelivery(
        f"{row.queue}:{row.id}", str(about.get("event", "")), about.get("job"), row.state, row.attempts_made, at,
        status, None if last is None else last.message,
    )  # fmt: skip


class Delivery(msgspec.Struct, frozen=True):
    """The payload of a job that delivers. ``previous``: the delivery for the same job that comes before this one.
    ``made_at``: when its webhook was made, so that a later one of the same name does not get it."""

    webhook: str
    body: dict[str, Any]
    previous: str | None = None
    made_at: int | None = None


def check_webhook_name(name: str) -> str:
    """Check and return the name of a webhook.

    :raises InvalidJob: it does not fit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJob(
            f"webhook name {name!r:.80}: 1 to 32 letters, digits, '_' or '-', starting with a letter or digit"
        )
    return name


def check_webhook_url(url: str) -> str:
    """Check and return the address of a webhook. Its host is checked when something is delivered.

    :raises InvalidJob: it is not http or https, has a user or password, or is too long.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except (ValueError, TypeError, AttributeError):
        parts, sound = None, False
    if not sound or parts is None or len(url) > URL_MAX or not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidJob(f"webhook url {url!r:.80}: give https://host/path, in ASCII, of at most {URL_MAX} characters")
    if "@" in parts.netloc:
        raise InvalidJob("the webhook url has a user or password: leave them out; deliveries are signed instead")
    return url


def check_webhook_events(events: Collection[str]) -> list[str]:
    """Check and return the names of events, in their usual order.

    :raises InvalidJob: there is no such event, or none is given.
    """
    known = [name for name in KINDS if name != "missed"]
    wrong = [events] if isinstance(events, str) else [name for name in events if name not in known]
    if wrong or not events:
        raise InvalidJob(f"webhook events {', '.join(map(str, wrong))!r:.80}: give a list of {', '.join(known)}")
    return [name for name in known if name in events]


def new_secret() -> str:
    """A secret that nobody can guess."""
    return f"whsec_{b64encode(token_bytes(32)).decode()}"


def check_secret(secret: str) -> str:
    """Check and return a secret of the user's own. The error does not show it.

    :raises InvalidJob: it is not whsec_ and 24 to 64 bytes in base64.
    """
    try:
        size = len(_key(secret)) if secret.startswith("whsec_") else 0
    except (Base64Error, ValueError):
        size = 0
    if not 24 <= size <= 64:
        raise InvalidJob(
            "the webhook secret must be 'whsec_' and then 24 to 64 bytes in base64; without one, jobq makes it"
        )
    return secret


def _key(secret: str) -> bytes:
    return b64decode(secret.removeprefix("whsec_"), validate=True)


def signed_headers(secrets: Sequence[Secret], message_id: str, now_ms: int, body: bytes) -> dict[str, str]:
    """The headers of a delivery. Each secret that is still in use gives a signature."""
    at = str(now_ms // 1000)
    signed = b"%b.%b.%b" % (message_id.encode(), at.encode(), body)
    signatures = [
        "v1," + b64encode(hmac.new(_key(one.secret), signed, hashlib.sha256).digest()).decode()
        for one in secrets
        if one.until is None or one.until > now_ms
    ]
    return {"webhook-id": message_id, "webhook-timestamp": at, "webhook-signature": " ".join(signatures)}


def timestamp(ms: int) -> str:
    """Unix ms in ISO 8601."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
