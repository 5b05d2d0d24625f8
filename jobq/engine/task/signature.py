"""A handler's signature: the parameters of the payload, the injected ones, and the struct that validates payloads."""

from __future__ import annotations

import copy
import gc
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.encoding import encode_hook, refuse_non_finite
from jobq.engine.task.context import Depends
from jobq.engine.task.hooks import decode_hook
from jobq.engine.task.inject import Provider, injection, name_of, parameters_of
from jobq.redact import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE: Final = 1 << 18
"""Bytes of a payload from which on the garbage collector is disabled while it is decoded."""

_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode


class Signature:
    """Turns payloads into calls, and calls into payloads.

    :raises TypeError: the handler takes ``*args``, positional-only parameters, or a type that msgspec cannot validate.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        signature = parameters_of(fn)
        name = name_of(fn)
        self.returns: Any = Any if signature.return_annotation is signature.empty else signature.return_annotation
        self.injected: dict[str, Provider | None] = {}
        """The injected parameters, which are not in the payload. None stands for the Context."""
        self.open = False
        """True with ``**kwargs``: unknown fields are passed to the handler."""
        self.defaults: dict[str, Any] = {}
        """The arguments of a payload, with their defaults or ``inspect.Parameter.empty``."""
        fields: list[Any] = []
        self._keywords = False
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                self.open = True
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                raise TypeError(
                    f"{name}({parameter}): fields of a payload have names, so it cannot be *args or positional-only"
                )
            marker = injection(parameter.annotation, parameter.default)
            if marker is not None:
                self.injected[parameter.name] = Provider(marker) if isinstance(marker, Depends) else None
                continue
            self.defaults[parameter.name] = parameter.default
            self._keywords |= parameter.kind is parameter.KEYWORD_ONLY
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            if parameter.default is parameter.empty:
                fields.append((parameter.name, kind))
            else:
                fields.append((parameter.name, kind, _default(f"{name}({parameter})", parameter.default)))
        struct = name.rpartition(".")[2]
        self.names = tuple(field[0] for field in fields)
        hook = decode_hook()
        try:
            self.struct: type[msgspec.Struct] = msgspec.defstruct(
                struct, fields, kw_only=True, forbid_unknown_fields=not self.open
            )
            self._decode = msgspec.json.Decoder(self.struct, dec_hook=hook).decode
            lenient = msgspec.defstruct(struct, fields, kw_only=True)
            self._read = msgspec.json.Decoder(lenient, dec_hook=hook).decode
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        self.plain = not (self._keywords or self.injected or self.open)
        """Whether the payload's values can be passed by position."""
        self.closes = any(provider is not None and provider.closes for provider in self.injected.values())
        """A dependency must be closed at the end of the run."""

    def decode(self, payload: bytes | msgspec.Raw) -> msgspec.Struct:
        """Validate a payload. ``null`` counts as ``{}``.

        :raises msgspec.ValidationError: the payload does not fit the signature.
        """
        try:
            return self._decode(payload) if len(payload) < LARGE else self._decode_large(payload)
        except msgspec.ValidationError:
            if bytes(payload).strip() == b"null":
                return self._decode(b"{}")
            raise

    def read(self, payload: bytes | msgspec.Raw) -> msgspec.Struct:
        """As ``decode``, but ignore fields that the signature does not have, because another version may have them.

        :raises msgspec.ValidationError: the payload does not fit the signature.
        """
        return self._read(b"{}" if bytes(payload).strip() == b"null" else payload)

    def _decode_large(self, payload: bytes | msgspec.Raw) -> msgspec.Struct:
        # Decoding can make millions of objects. The collector would search them for cycles again and again, although
        # JSON has none, and would take two thirds of the time, in which this process does nothing else.
        enabled = gc.isenabled()
        gc.disable()
        try:
            return self._decode(payload)
        finally:
            if enabled:
                gc.enable()

    def extras(self, payload: bytes | msgspec.Raw) -> dict[str, Any]:
        """The fields for ``**kwargs``."""
        given: dict[str, Any] = msgspec.json.decode(payload) or {}
        return {name: value for name, value in given.items() if name not in self.names}

    def arguments(self, payload: bytes | msgspec.Raw) -> dict[str, Any]:
        """The arguments of a job as the handler gets them, with its defaults.

        :raises InvalidPayload: the payload does not fit.
        """
        return msgspec.structs.asdict(self.read(payload))

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The payload of a call. It holds the arguments that were given. The handler's defaults are used when it runs.

        :raises TypeError: more positional arguments than parameters, one given twice, or a value that is not JSON.
        :raises ValueError: a value is NaN or infinite.
        """
        if args:
            if len(args) > len(self.names):
                raise TypeError(f"{len(self.names)} positional arguments at most, {len(args)} given")
            for name, value in zip(self.names, args, strict=False):
                if name in kwargs:
                    raise TypeError(f"argument {name!r} given twice")
                kwargs[name] = value
        payload = _encode(kwargs)
        if b"null" in payload:
            refuse_non_finite(kwargs)
        return payload


def field_names(payload: bytes | msgspec.Raw) -> list[str]:
    """The names of a payload's first fields, for an error text. Empty if the payload is not an object."""
    try:
        fields = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [excerpt(name, 40) for name in list(fields)[:20]]


def misfit_of_type(error: BaseException) -> str:
    """Why a payload does not fit if the code of an argument's type, such as ``__post_init__``, raised the error."""
    return f"the type of an argument raised {type(error).__name__}: {excerpt(str(error), 300)}"


def _default(parameter: str, default: Any) -> Any:
    """A parameter's default as a struct takes it. A mutable default is copied deeply for each run, so that a run
    cannot change the default of the next one.

    :raises TypeError: the default cannot be copied.
    """
    try:
        changeable = copy.deepcopy(default) is not default
    except Exception as error:  # noqa: BLE001 - its own code may raise anything
        raise TypeError(
            f"{parameter}: the default cannot be copied for each run ({error}); take None and make it in the handler"
        ) from None
    return msgspec.field(default_factory=lambda: copy.deepcopy(default)) if changeable else default
