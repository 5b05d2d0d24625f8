"""A handler's signature: what is payload, what is injected, and the struct that validates the payload."""

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
"""Bytes of a payload that is decoded with the garbage collector at rest."""

_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode


class Signature:
    """How to get from a payload to a call.

    :raises TypeError: the handler takes ``*args`` or positional-only parameters, or a type msgspec cannot validate.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        signature = parameters_of(fn)
        name = name_of(fn)
        self.returns: Any = Any if signature.return_annotation is signature.empty else signature.return_annotation
        self.injected: dict[str, Provider | None] = {}
        """Parameters that are no part of the payload. None stands for the Context."""
        self.open = False
        """True with ``**kwargs``: unknown fields are passed on instead of refused."""
        self.defaults: dict[str, Any] = {}
        """The arguments of a payload, with their defaults or ``inspect.Parameter.empty``."""
        fields: list[Any] = []
        self._keywords = False
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                self.open = True
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                raise TypeError(f"{name}({parameter}): a payload has names, so no *args and no positional-only")
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
        """The payload's values can be passed by position."""
        self.closes = any(provider is not None and provider.closes for provider in self.injected.values())
        """A dependency has to be closed at the end of the run."""

    def decode(self, payload: bytes | msgspec.Raw) -> msgspec.Struct:
        """Validate a payload; ``null`` counts as ``{}``.

        :raises msgspec.ValidationError: it does not fit the signature.
        """
        try:
            return self._decode(payload) if len(payload) < LARGE else self._decode_large(payload)
        except msgspec.ValidationError:
            if bytes(payload).strip() == b"null":
                return self._decode(b"{}")
            raise

    def read(self, payload: bytes | msgspec.Raw) -> msgspec.Struct:
        """As ``decode``, but fields that the signature does not have are ignored: another version may have them.

        :raises msgspec.ValidationError: it does not fit the signature.
        """
        return self._read(b"{}" if bytes(payload).strip() == b"null" else payload)

    def _decode_large(self, payload: bytes | msgspec.Raw) -> msgspec.Struct:
        # It makes objects by the million, and the collector would look through them again and again for cycles, of
        # which JSON has none: two thirds of the time, in which this process does nothing else.
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

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """A payload out of a call's arguments. It holds what was given; defaults are the handler's at the run.

        :raises TypeError: more positional arguments than parameters, one given twice, or a value without JSON form.
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
    """The first names of a payload's fields, for an error text; empty if it is no object."""
    try:
        fields = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [excerpt(name, 40) for name in list(fields)[:20]]


def _default(parameter: str, default: Any) -> Any:
    """A parameter's default as a struct takes it. A mutable one is copied for each run, with all that it holds, so
    that one run cannot change the next one's.

    :raises TypeError: it cannot be copied.
    """
    try:
        changeable = copy.deepcopy(default) is not default
    except Exception as error:  # noqa: BLE001 - whatever its copy raises
        raise TypeError(
            f"{parameter}: the default cannot be copied for each run ({error}); take None and make it in the handler"
        ) from None
    return msgspec.field(default_factory=lambda: copy.deepcopy(default)) if changeable else default
