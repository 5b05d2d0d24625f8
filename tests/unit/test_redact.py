"""Passwords of URLs stay out of what people and logs see."""

from __future__ import annotations

import pytest

from jobq import Connection
from jobq.engine.store.link import translate
from jobq.errors import SettingsError
from jobq.redact import redact

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://:hunter2@host", "redis://:***@host"),
        ("redis://user:hunter2@host:6379/0", "redis://user:***@host:6379/0"),
        ("two: a://u:hunter2@h, b://v:hunter2@i", "two: a://u:***@h, b://v:***@i"),
        ('{"url":"redis://u:hunter2@h","to":"x@y"}', '{"url":"redis://u:***@h","to":"x@y"}'),
        ("redis://user:hunter2@hunter2@host", "redis://user:***@host"),
        ("redis://user:hunter2/hunter2@host", "redis://user:***@host"),
        ("redis+sentinel://u:hunter2@a:1,b:2/s", "redis+sentinel://u:***@a:1,b:2/s"),
        ("redis://host/0?db=1&password=hunter2&x=1", "redis://host/0?db=1&password=***&x=1"),
    ],
)
def test_passwords_go(given: str, shown: str):
    assert redact(given) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no URL, but somebody@example.com",
        "redis://host:6379/0",
        "unix:///tmp/socket",
        "http://host:80/users/somebody@example.com",
        "http://host/users/somebody@example.com?page=1",
        "redis+sentinel://a:26379,b:26379/service",
        "time 12:30 // at: me@home",
        "redis://user@host",
    ],
)
def test_all_else_stays(text: str):
    assert redact(text) == text


def test_where_urls_are_shown():
    assert SECRET not in repr(Connection(f"redis://:{SECRET}@localhost:1/0"))
    assert SECRET not in str(translate(OSError(f"cannot reach redis://u:{SECRET}@h")))
    with pytest.raises(SettingsError, match=r"Redis URL 'nonsense://u:\*\*\*@h'") as caught:
        Connection(f"nonsense://u:{SECRET}@h")
    assert SECRET not in str(caught.value)
