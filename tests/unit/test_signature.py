"""A handler's signature becomes the struct of its payload, and a payload becomes a call."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from jobq import Context, Depends, Queue, inject
from jobq.engine.task.inject import injection
from jobq.engine.task.signature import LARGE, Signature
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable


def values(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def plain(to: str, subject: str = "Hello", copies: int = 1) -> str:
    return f"{to}{subject}{copies}"


def test_defaults_and_conversion():
    signature = Signature(plain)
    assert values(signature.decode(b'{"to":"a"}')) == {"to": "a", "subject": "Hello", "copies": 1}
    assert values(signature.decode(b'{"copies":3,"to":"a","subject":""}')) == {"to": "a", "subject": "", "copies": 3}
    assert signature.returns is str
    assert signature.plain
    assert not signature.open


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"{}", "Object missing required field `to`"),
        (b'{"to":1}', r"Expected `str`, got `int` - at `\$.to`"),
        (b'{"to":"a","nope":1}', "Object contains unknown field `nope`"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Object missing required field `to`"),
        (b'{"to":"a"', "Input data was truncated"),
        (b'{"to":"a","copies":NaN}', "JSON is malformed"),
    ],
)
def test_payloads_that_do_not_fit(payload: bytes, message: str):
    queue = Queue("q", "unix:///nowhere")
    task = queue.task(plain)
    with pytest.raises(InvalidJob, match=f"payload of 'plain': {message}"):
        task.check(payload)


def test_null_is_an_empty_payload():
    def nothing() -> None: ...

    def optional(a: int = 1) -> None: ...

    assert values(Signature(nothing).decode(b"null")) == {}
    assert values(Signature(optional).decode(b" null ")) == {"a": 1}
    assert Signature(nothing).returns is None


@pytest.mark.parametrize("enabled", [True, False])
def test_a_large_payload_does_not_wake_the_collector(enabled: bool):
    signature = Signature(lambda rows: rows)
    rows = b"[%b]" % b",".join(b'{"a":[%d]}' % n for n in range(50_000))
    assert len(rows) > LARGE
    seen: list[str] = []
    watch = lambda phase, _: seen.append(phase)  # noqa: E731
    collecting = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        gc.callbacks.append(watch)
        large = signature.decode(b'{"rows":%b}' % rows)
        decoded = list(seen)
        with pytest.raises(msgspec.ValidationError):
            signature.decode(b'{"other":%b}' % rows)
        assert gc.isenabled() is enabled
    finally:
        gc.callbacks.remove(watch)
        (gc.enable if collecting else gc.disable)()
    assert len(values(large)["rows"]) == 50_000
    assert len(decoded) <= 2  # One collection may follow directly.


def test_keyword_only():
    def handler(a: int, *, b: int = 2) -> None: ...

    signature = Signature(handler)
    assert values(signature.decode(b'{"a":1}')) == {"a": 1, "b": 2}
    assert not signature.plain, "b cannot be passed by position"


def test_required_behind_optional():
    def handler(a: int = 1, *, b: str) -> None: ...

    assert values(Signature(handler).decode(b'{"b":"x"}')) == {"a": 1, "b": "x"}


def test_kwargs_receive_all_other_fields():
    def handler(a: int, **rest: Any) -> None: ...

    signature = Signature(handler)
    payload = b'{"a":1,"b":[2],"c":{"d":null}}'
    assert values(signature.decode(payload)) == {"a": 1}
    assert signature.extras(payload) == {"b": [2], "c": {"d": None}}
    assert signature.extras(b"null") == {}
    assert signature.open
    assert not signature.plain


def test_parameters_without_annotations_accept_anything():
    def handler(a, b=None): ...  # type: ignore[no-untyped-def]

    signature = Signature(handler)
    assert values(signature.decode(b'{"a":[1,{"x":2}]}')) == {"a": [1, {"x": 2}], "b": None}
    assert signature.returns is Any


def connect() -> int:
    return 7


Pool = Annotated[int, Depends(connect)]


@pytest.mark.parametrize(
    ("depends", "closes"),
    [
        (lambda: Depends(_plain), False),
        (lambda: Depends(_generator), True),
        (lambda: Depends(_needs_a_generator), True),
        (lambda: Depends(_generator, scope="worker"), False),
    ],
    ids=["plain", "generator", "needs a generator", "of the worker"],
)
def test_only_dependencies_that_are_closed_need_an_exit_stack(depends: Callable[[], Depends[Any]], closes: bool):
    async def handler(value: Any) -> None: ...

    handler.__defaults__ = (depends(),)
    assert Signature(handler).closes is closes


def _plain() -> int:
    return 1


def _generator() -> Any:
    yield 1


def _needs_a_generator(value: Annotated[int, Depends(_generator)]) -> int:
    return value


def test_injected_parameters_are_not_part_of_the_payload():
    def handler(
        a: int, ctx: Context = inject, pool: Pool = inject, *, note: Annotated[str, "no marker"] = ""
    ) -> None: ...

    signature = Signature(handler)
    assert signature.names == ("a", "note")
    assert signature.injected["ctx"] is None, "the Context"
    assert signature.injected["pool"] is not None
    assert signature.injected["pool"].call is connect
    with pytest.raises(msgspec.ValidationError, match="unknown field `pool`"):
        signature.decode(b'{"a":1,"pool":2}')
    assert injection(int) is None
    assert injection(Annotated[int, "x"]) is None


def test_structs_and_containers_are_validated():
    class Address(msgspec.Struct):
        street: str

    def handler(to: Address, tags: list[str] | None = None) -> None: ...

    handler.__annotations__ = {"to": Address, "tags": list[str] | None}
    signature = Signature(handler)
    assert values(signature.decode(b'{"to":{"street":"x"},"tags":["a"]}'))["to"] == Address("x")
    with pytest.raises(msgspec.ValidationError, match=r"Expected `str`, got `int` - at `\$.tags\[0\]`"):
        signature.decode(b'{"to":{"street":"x"},"tags":[1]}')


def test_mutable_defaults_of_a_signature_are_copied_for_each_run():
    def handler(tags: list[str] = ["a"], more: dict[str, int] = {}) -> None: ...  # noqa: B006 - that is the test

    signature = Signature(handler)
    first = values(signature.decode(b"{}"))
    first["tags"].append("b")
    first["more"]["x"] = 1
    assert values(signature.decode(b"{}")) == {"tags": ["a"], "more": {}}


def test_nested_mutable_defaults_are_not_shared_between_runs():
    class Options(msgspec.Struct):
        tags: list[str]

    def handler(a: Any = ({"tags": ["a"]},), b: Any = {"x": [1]}, c: Any = Options([])) -> None: ...  # noqa: B006, B008

    signature = Signature(handler)
    first = values(signature.decode(b"{}"))
    first["a"][0]["tags"].append("b")
    first["b"]["x"].append(2)
    first["c"].tags.append("c")
    assert values(signature.decode(b"{}")) == {"a": ({"tags": ["a"]},), "b": {"x": [1]}, "c": Options([])}
    assert values(signature.read(b"{}")) == values(signature.decode(b"{}"))

    def locked(a: Any = threading.Lock()) -> None: ...  # noqa: B008

    with pytest.raises(TypeError, match="the default cannot be copied for each run"):
        Signature(locked)


def test_calls_become_payloads():
    signature = Signature(plain)
    assert signature.encode(("a",), {"copies": 2}) == b'{"copies":2,"to":"a"}'
    assert signature.encode((), {}) == b"{}", "defaults are the handler's, at the run"
    with pytest.raises(TypeError, match="3 positional arguments at most, 4 given"):
        signature.encode((1, 2, 3, 4), {})
    with pytest.raises(TypeError, match="argument 'to' given twice"):
        signature.encode(("a",), {"to": "b"})


def test_calls_that_do_not_fit():
    queue = Queue("q", "unix:///nowhere")
    task = queue.task(plain)
    for args, kwargs, message in (
        ((1, 2, 3, 4), {}, "3 positional arguments at most, 4 given"),
        (("a",), {"to": "b"}, "argument 'to' given twice"),
        ((object(),), {}, "Encoding objects of type object is unsupported"),
        ((), {}, "missing required field `to`"),
        ((5,), {}, "Expected `str`, got `int`"),
    ):
        with pytest.raises(InvalidJob, match=f"payload of 'plain': .*{message}"):
            queue.check(task.new(args, kwargs, task.defaults))


def test_signatures_that_no_payload_can_match_are_refused():
    def positional(a: int, /) -> None: ...

    def several(*args: int) -> None: ...

    def unknown(a: NotThere) -> None: ...  # type: ignore[name-defined] # noqa: F821

    def unfit(a: list[int] | set[int]) -> None: ...

    for fn, message in (
        (
            positional,
            r"positional\(a: int\): fields of a payload have names, so it cannot be \*args or positional-only",
        ),
        (several, r"several\(\*args: int\): fields of a payload have names"),
        (unknown, "unknown: name 'NotThere' is not defined; the types of a handler's parameters must be importable"),
        (unfit, "unfit: Type unions may not contain more than one array-like"),
    ):
        with pytest.raises(TypeError, match=message):
            Signature(fn)


def test_schema():
    task = Queue("q", "unix:///nowhere").task(plain)
    schema = task.schema()["$defs"]["plain"]
    assert schema["required"] == ["to"]
    assert schema["properties"]["copies"] == {"type": "integer", "default": 1}
    assert schema["additionalProperties"] is False


def test_an_error_about_a_payload_is_short_even_if_a_field_has_a_long_name():
    queue = Queue("q")

    @queue.task
    async def work(a: int) -> None: ...

    for payload in (b'{"a":1,"%b":1}' % (b"x" * 1_000_000), b'{"a":"1","%b":1}' % (b"x" * 1_000_000)):
        with pytest.raises(InvalidJob) as refused:
            work.check(payload)
        assert len(str(refused.value)) < 2_000
