"""The dashboard: files in which no text of a job can act as HTML, and sessions."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rest import enqueue, problem, working

from jobq import Connection, Context, Queue, Settings, inject
from jobq.errors import SettingsError
from jobq.http import dashboard
from jobq.http.app import create_app
from jobq.http.auth import Keyring, Scope, new_key
from jobq.http.problems import HttpProblem
from jobq.http.sessions import COOKIE, SECONDS, Sessions

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from rest import Client, NewClient

READ, WRITE, ADMIN = (new_key(name, Scope[name.upper()]) for name in ("read", "write", "admin"))
KEYS = [key for _, key in (READ, WRITE, ADMIN)]
STATIC = ["index.html", *dashboard.SCRIPTS, "style.css"]
ROOT = Path(__file__).parents[2]


def static(name: str) -> str:
    return files(dashboard).joinpath(name).read_text(encoding="utf-8")


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [("", "text/html"), *((f"/{name}", "text/javascript") for name in dashboard.SCRIPTS), ("/style.css", "text/css")],
)
async def test_files_are_served_with_a_strict_policy(client: Client, path: str, kind: str):
    response = await client.get(f"/dashboard{path}")
    assert (response.status, response.content_type, response.charset) == (200, kind, "utf-8")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


async def test_the_page_has_one_address(client: Client):
    response = await client.get("/dashboard/", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (308, "../dashboard")
    assert (await client.get("/dashboard/")).content_type == "text/html"
    await problem(await client.get("/dashboard/other.js"), 404, "not-found")
    await problem(await client.get("/dashboard/../settings.py"), 404, "not-found")
    await problem(await client.post("/dashboard"), 405, "method-not-allowed")


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style") and data.strip():
            self.inline.append(data)


def test_the_page_holds_no_script_no_style_and_nothing_of_the_network():
    page = Tags(static("index.html"))
    assert not page.inline
    for tag, attributes in page.found:
        assert tag not in ("style", "iframe", "base", "object", "embed"), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], attributes
        for name in ("src", "href", "action"):
            target = attributes.get(name) or ""
            assert not re.match(r"(?!data:image/)\w+:|//|/", target), "addresses are relative, for apps under a prefix"
    assert "url(" not in static("style.css")
    assert "@import" not in static("style.css")


def test_no_text_is_ever_read_as_html():
    script = "".join(static(name) for name in dashboard.SCRIPTS)
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML|srcdoc"
        r"|\beval\b|\bFunction\(|setTimeout\(\s*[\"'`]|setInterval\(\s*[\"'`]|\.style\b|https?://(?!www\.w3\.org/2000/svg)"
    )
    assert re.findall(forbidden, script) == []
    # A link leads to a route of the page, or to a job in REST.
    assert set(re.findall(r"href: ([\w`#/]+)", script)) <= {"hrefOf", "jobPath", "`#/job/"}
    # Scripts import each other, all of them, and nothing else.
    loaded = {name: re.findall(r'from "\./([\w.]+)";$', static(name), re.MULTILINE) for name in dashboard.SCRIPTS}
    assert {"app.js", *(one for names in loaded.values() for one in names)} == set(dashboard.SCRIPTS)
    for place, names in enumerate(loaded.values()):
        assert set(names) <= set(dashboard.SCRIPTS[place + 1 :]), "scripts load each other in one direction"
    assert "import(" not in script
    assert all(len(static(name).splitlines()) < 400 for name in dashboard.SCRIPTS)


EVIL = "<img src=x onerror=alert(1)></script><script>alert(1)</script>\u202e"


async def test_no_text_of_a_job_is_read_as_html(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)
    client = await new_client(queue)
    job = await enqueue(client, type=EVIL[:20], payload={EVIL: EVIL}, metadata={EVIL: EVIL}, attempts=1)

    @queue.task(name=EVIL[:20])
    async def evil(ctx: Context = inject, **_: Any) -> None:
        ctx.log(EVIL)
        ctx.progress(EVIL)
        raise ValueError(EVIL)

    async with working(queue):
        with pytest.raises(Exception, match="img src"):
            await queue.result(job.removeprefix("main:"), timeout=10)
    for path in (f"/jobs/{job}", f"/jobs/{job}/logs", "/jobs", "/jobs/failed/jobs", f"/jobs/{job}/result"):
        response = await client.get(path)
        assert "img src" in await response.text(), path
        assert response.content_type in ("application/json", "application/problem+json")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    for path in ("", *(f"/{name}" for name in STATIC[1:])):
        assert "img src" not in await (await client.get(f"/dashboard{path}")).text()


def test_the_wheel_holds_the_files(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in STATIC:
        assert f"jobq/http/dashboard/{name}" in names


# -- sessions --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def locked(new_client: NewClient, connection: Connection) -> Client:
    """An application with a key for each scope."""
    return await new_client(Queue("main", connection), Queue("other", connection), api_keys=KEYS)


def origin(client: Client) -> dict[str, str]:
    return {"Origin": str(client.make_url("")).rstrip("/"), "Sec-Fetch-Site": "same-origin"}


async def log_in(client: Client, secret: str) -> ClientResponse:
    client.session.cookie_jar.clear()
    response = await client.post("/dashboard/login", json={"key": secret}, headers=origin(client))
    assert response.status == 204, await response.text()
    # The cookie jar keeps no cookies for addresses.
    client.session.headers["Cookie"] = f"{COOKIE}={response.cookies[COOKIE].value}"
    return response


async def test_a_login_gives_a_cookie_that_scripts_and_other_sites_do_not_get(locked: Client):
    response = await log_in(locked, READ[0])
    cookie = response.cookies[COOKIE]
    assert cookie["httponly"] is True
    assert (cookie["samesite"], cookie["path"], cookie["domain"], cookie["secure"]) == ("Strict", "/", "", "")
    assert int(cookie["max-age"]) == SECONDS
    assert READ[0] not in cookie.value
    assert KEYS[0].sha256 not in cookie.value
    assert (await locked.get("/jobs")).status == 200
    assert await (await locked.get("/dashboard/session")).json() == {"key": "read", "scope": "read", "login": True}


@pytest.mark.parametrize(
    "headers", [{"X-Forwarded-Proto": "https"}, {"Origin": "https://jobs.example", "Host": "jobs.example"}]
)
async def test_over_https_the_cookie_is_secure(new_client: NewClient, connection: Connection, headers: dict[str, str]):
    settings = Settings(http_host="0.0.0.0")
    client = await new_client(Queue("main", connection), api_keys=KEYS, settings=settings)
    for path in ("login", "logout"):
        response = await client.post(f"/dashboard/{path}", json={"key": READ[0]}, headers=headers)
        assert response.cookies[COOKIE]["secure"] is True


async def test_a_form_is_led_back_to_the_page(locked: Client):
    response = await locked.post("/dashboard/login", data={"key": READ[0]}, allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (303, "../dashboard")
    assert response.cookies[COOKIE].value
    for wrong in ({"key": ""}, {"other": "x"}, {"key": "x", "more": "y"}):
        response = await locked.post("/dashboard/login", data=wrong, allow_redirects=False)
        await problem(response, 422, "invalid-field")


async def test_only_keys_log_in(locked: Client, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", "jobq.audit"):
        for secret in ("wrong", KEYS[0].sha256, "\u00e9"):
            response = await locked.post("/dashboard/login", json={"key": secret})
            await problem(response, 401, "unauthenticated")
            assert COOKIE not in response.cookies
        await log_in(locked, READ[0])
    messages = [record.msg for record in caplog.records if record.name == "jobq.audit"]
    refused = "Dashboard login refused, from 127.0.0.1"
    assert messages == [refused] * 3 + ["Dashboard login with key read, from 127.0.0.1"]
    assert READ[0] not in caplog.text
    await problem(await locked.post("/dashboard/login", json={"key": "x" * 5000}), 413, "too-large")
    await problem(await locked.post("/dashboard/login", data={"key": "x" * 5000}), 413, "too-large")
    await problem(await locked.post("/dashboard/login", json={"keys": "x"}), 422, "unknown-field")


async def test_other_pages_cannot_log_anybody_in_or_out(locked: Client):
    for path in ("login", "logout"):
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
            response = await locked.post(f"/dashboard/{path}", json={"key": READ[0]}, headers=headers)
            await problem(response, 403, "cross-origin")
        response = await locked.post(f"/dashboard/{path}", json={"key": READ[0]}, headers={"Host": "evil.example"})
        await problem(response, 421, "host-not-allowed")


async def test_a_session_has_the_scope_and_the_queues_of_its_key(new_client: NewClient, connection: Connection):
    mail = new_key("mail", Scope.WRITE, ["mail"])
    client = await new_client(Queue("main", connection), Queue("mail", connection), api_keys=[mail[1], *KEYS])
    await log_in(client, mail[0])
    assert [queue["name"] for queue in (await (await client.get("/queues")).json())["queues"]] == ["mail"]
    await problem(await client.get("/jobs"), 403, "forbidden")
    await problem(await client.post("/queues/mail/jobs/pause", headers=origin(client)), 403, "forbidden")
    await log_in(client, ADMIN[0])
    assert (await client.post("/queues/mail/jobs/pause", headers=origin(client))).status == 200


OURS = [
    {"Sec-Fetch-Site": "same-origin"},
    {"Origin": "SELF"},
    {"Origin": "SELF", "Sec-Fetch-Site": "same-origin"},
]
THEIRS: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "none", "Origin": "SELF"},
    {"Sec-Fetch-Site": "same-site", "Origin": "SELF"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": ""},
]


@pytest.mark.parametrize("headers", OURS + THEIRS, ids=str)
async def test_a_session_can_write_only_from_our_own_pages(locked: Client, headers: dict[str, str]):
    await log_in(locked, ADMIN[0])
    sent = {name: origin(locked)["Origin"] if value == "SELF" else value for name, value in headers.items()}
    calls = [("POST", "/jobs/pause"), ("DELETE", "/jobs?state=failed"), ("POST", "/jobs/retry")]
    for method, path in calls:
        response = await locked.request(method, path, headers=sent)
        if headers in OURS:
            assert response.status == 200
        else:
            await problem(response, 403, "cross-origin")
    # The same with a key in its header, which no browser sends by itself.
    if headers == {}:
        response = await locked.post("/jobs/pause", headers={"Authorization": f"Bearer {ADMIN[0]}"})
        assert response.status == 200


async def test_a_key_in_the_header_is_used_instead_of_the_cookie(locked: Client):
    await log_in(locked, ADMIN[0])
    await problem(await locked.get("/jobs", headers={"Authorization": "Bearer wrong"}), 401, "unauthenticated")


async def test_logout_deletes_the_cookie(locked: Client):
    await log_in(locked, READ[0])
    response = await locked.post("/dashboard/logout", headers=origin(locked))
    cookie = response.cookies[COOKIE]
    assert (response.status, cookie.value, cookie["max-age"], cookie["path"]) == (204, "", "0", "/")


@pytest.mark.parametrize(
    "value", ["", "x", ".", "1.", "9999999999", "9999999999.", "9" * 400 + ".a", "\u0661.a", "-1.a"]
)
async def test_an_invalid_session_is_401(locked: Client, value: str):
    response = await locked.get("/jobs", headers={"Cookie": f"{COOKIE}={value}"})
    await problem(response, 401, "unauthenticated")


def test_sessions_end():
    key = KEYS[0]
    soon = new_key("soon", expires=1100.0)[1]
    now = [1000.0]
    sessions = Sessions(Keyring([key, soon]), "secret" * 6, now=lambda: now[0])
    value, seconds = sessions.new(key)
    short, left = sessions.new(soon)
    assert (seconds, left) == (SECONDS, 100)
    assert sessions.find(value) is key
    assert sessions.find(short) is soon
    now[0] = 1100.0
    with pytest.raises(HttpProblem, match="has ended"):
        sessions.find(short)
    now[0] = 1000.0 + SECONDS - 1
    assert sessions.find(value) is key
    now[0] += 1
    with pytest.raises(HttpProblem, match="has ended"):
        sessions.find(value)


def test_a_session_cannot_be_changed_to_last_longer_or_belong_to_another_key():
    sessions = Sessions(Keyring(KEYS), "secret" * 6)
    value, _ = sessions.new(KEYS[0])
    until, signature = value.split(".")
    for forged in (f"{int(until) + 1}.{signature}", f"{until}.{signature[:-1]}", f"0{until}.{signature[::-1]}"):
        with pytest.raises(HttpProblem, match="has ended"):
            sessions.find(forged)
    assert sessions.find(value) is KEYS[0]


def test_a_session_ends_with_its_key_and_is_valid_in_all_processes():
    value, _ = Sessions(Keyring(KEYS), "secret" * 6).new(KEYS[0])
    assert Sessions(Keyring(KEYS), "secret" * 6).find(value) is KEYS[0]
    replaced = new_key(KEYS[0].name, Scope.ADMIN)[1]
    for other in (
        Sessions(Keyring([replaced, *KEYS[1:]]), "secret" * 6),
        Sessions(Keyring(KEYS), "another" * 6),
        # Knowledge of the configured hashes alone is not enough to make a session.
        Sessions(Keyring(KEYS)),
    ):
        with pytest.raises(HttpProblem, match="has ended"):
            other.find(value)


def test_a_short_secret_is_refused_and_not_shown(connection: Connection):
    with pytest.raises(SettingsError, match="32 or more random characters") as caught:
        create_app(Queue("main", connection), settings=Settings(session_secret="hunter2"))
    assert "hunter2" not in str(caught.value)


async def test_without_keys_there_is_no_login(client: Client):
    assert await (await client.get("/dashboard/session")).json() == {"key": "anyone", "scope": "admin", "login": False}
    assert (await client.post("/jobs/pause")).status == 200


async def test_logins_count_for_the_rate(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection), api_keys=KEYS, rate=2)
    answers = [await client.post("/dashboard/login", json={"key": "x"}) for _ in range(6)]
    assert answers[0].status == 401
    await problem(answers[-1], 429, "rate-limited")
