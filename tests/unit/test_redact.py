"""Passwords of URLs are neither shown nor logged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from jobq import Connection
from jobq.engine.model.job import Spec
from jobq.engine.model.outcome import judge
from jobq.engine.store.refusals import translate
from jobq.errors import InvalidPayload, SettingsError
from jobq.http.problems import validation_problem
from jobq.redact import excerpt, redact

if TYPE_CHECKING:
    from collections.abc import Callable

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
        ("https://host/?API_KEY=hunter2 and ?access_token=hunter2", "https://host/?API_KEY=*** and ?access_token=***"),
        ("redis://u:x@h?password=hunter2@h", "redis://u:******"),
        ("REDIS://U:hunter2@H", "REDIS://U:***@H"),
        ("redis://u:hunter2:hunter2@h", "redis://u:***@h"),
        ("redis://:6379/hunter2@h", "redis://:***@h"),
        ("redis://u:6379/hunter2@h", "redis://u:***@h"),
        ("http://:80/hunter2@h", "http://:***@h"),
        ("//:hunter2@h ///u:hunter2@h a//b//c:hunter2@h", "//:***@h ///u:***@h a//b//c:***@h"),
    ],
)
def test_passwords_are_masked(given: str, shown: str):
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
def test_other_text_is_not_changed(text: str):
    assert redact(text) == text


HOSTILE = {
    "users without a password": "//a:",
    "slashes": "/",
    "hosts": "http://a:80/",
    "users": "//u:p@h ",
    "queries": "?password=",
    "long names in queries": "?" + "a" * 50,
    "at signs": "//@",
    "spaces": "// : @ ",
}
MEGABYTE = 1 << 20


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_the_work_grows_with_the_length_of_the_text(part: str):
    """The old pattern took 53 s for 200 KB. The bound is CPU time, and thirty times the need."""
    text = part * (MEGABYTE // len(part))
    began = time.process_time()
    redact(text)
    redact(text + "@")
    assert time.process_time() - began < 15


def test_a_long_text_is_cut_before_it_is_searched():
    class Text(str):
        def find(self, *_: object) -> int:
            raise AssertionError("the whole text is searched")

    assert excerpt(Text("x" * MEGABYTE), 10) == f"xxxxx\n... {MEGABYTE - 10} characters left out ...\nxxxxx"


def test_an_excerpt_is_the_start_and_the_end():
    assert excerpt("abc", 3) == "abc"
    assert excerpt("abcdefghij", 4) == "ab\n... 6 characters left out ...\nij"


URL = f"redis://user:{SECRET}@host"


@pytest.mark.parametrize("at", range(len(URL) + 1))
def test_a_password_at_the_cut_is_not_shown(at: int):
    """The cuts may be anywhere in the URL: at the end of the first half, or at the start of the second."""
    half = 100
    text = "." * (half - at) + URL + "." * 1000 + URL + "." * (half - at)
    shown = excerpt(text, 2 * half)
    for length in range(3, len(SECRET) + 1):
        assert SECRET[:length] not in shown
        assert SECRET[-length:] not in shown


def test_passwords_are_masked_wherever_urls_are_shown():
    assert SECRET not in repr(Connection(f"redis://:{SECRET}@localhost:1/0"))
    assert SECRET not in str(translate(OSError(f"cannot reach redis://u:{SECRET}@h")))
    with pytest.raises(SettingsError, match=r"Redis URL 'nonsense://u:\*\*\*@h'") as caught:
        Connection(f"nonsense://u:{SECRET}@h")
    assert SECRET not in str(caught.value)


def _judged(text: str) -> None:
    judge(Spec("t", 0), 1, InvalidPayload(text), "worker")


def _refused(text: str) -> None:
    class Body(msgspec.Struct, forbid_unknown_fields=True):
        kind: Literal["a", "b"] = "a"

    for body in ({text: 1}, {"kind": text}):
        with pytest.raises(msgspec.ValidationError) as caught:
            msgspec.json.decode(msgspec.json.encode(body), type=Body)
        assert len(validation_problem(caught.value).detail) < 2000


ENTRIES = {"a failed attempt": _judged, "a body that REST refuses": _refused}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("part", [*HOSTILE.values(), " - at `", "`", "` - at `$."])
def test_hostile_text_costs_little_everywhere_it_is_redacted(entry: Callable[[str], None], part: str):
    began = time.process_time()
    entry(part * (MEGABYTE // len(part)))
    assert time.process_time() - began < 15
