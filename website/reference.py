"""Pages of the reference that are made from the code: Python, settings, metrics, errors."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import griffe

import jobq
from jobq import Settings, errors
from jobq.cli.parser import build_parser
from jobq.http.duties import Duties
from jobq.http.metrics import metrics_of, metrics_of_server
from jobq.http.problems import KINDS, causes
from website.folders import DOCS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_ARGUMENT = re.compile(r"^(`\w+`(?:(?:,| and) `\w+`)*: )", re.MULTILINE)
RENAMED = {"redis": "redis_url", "host": "http_host", "port": "http_port"}
"""Flags that are shorter than their settings."""
_RAISES = re.compile(r"^:raises ([\w., ]+): ", re.MULTILINE)


@cache
def read_package() -> Any:
    """The package, read without being imported. It takes seconds."""
    return griffe.load("jobq", allow_inspection=False)


def pages() -> dict[str, str]:
    """The pages, by their place."""
    made = {
        "reference/settings.md": settings(),
        "reference/metrics.md": metrics(),
        "errors/all.md": error_index(),
        "reference/problems.md": problems(),
    }
    made |= {f"errors/{kind.__name__}.md": error(kind) for kind in kinds()}
    package = read_package()
    rows: list[str] = []
    mine = python_names()
    for name in sorted(jobq.__all__, key=str.lower):
        found = package[name]
        thing = found.final_target if isinstance(found, griffe.Alias) else found
        if name not in mine:
            rows.append(f"| [{name}](../../errors/{name}.md) | {first(thing)} |")
        else:
            rows.append(f"| [{name}]({name}.md) | {first(thing)} |")
            made[f"reference/python/{name}.md"] = page(name, thing)
    head = "# Python\n\nEverything that `from jobq import ...` offers.\n\n| Name | |\n|---|---|\n"
    made["reference/python/index.md"] = head + "\n".join(rows) + "\n"
    return made


def python_names() -> list[str]:
    """The names that have a page in the reference of Python. Errors have pages of their own."""
    return sorted(set(jobq.__all__) - {kind.__name__ for kind in kinds()}, key=str.lower)


# -- Python ------------------------------------------------------------------------------------------------------------


def page(name: str, thing: griffe.Object | griffe.Alias) -> str:
    """The page of a class, a function or a type."""
    parts = [f"# {name}", code(name, thing), prose(thing)]
    if isinstance(thing, griffe.Class):
        members = [one for one in thing.all_members.values() if not one.name.startswith("_")]
        fields = [one for one in members if one.is_attribute and not one.name.isupper()]
        constants = [one for one in members if one.is_attribute and one.name.isupper()]
        if constants:
            parts += ["## Values", *(f"- `{one.name}`: {one.value}{_words(one)}" for one in map(_final, constants))]
        for one in [*(one for one in members if one.is_function), *fields]:
            parts += [f"## {one.name}", code(one.name, _final(one)), prose(_final(one))]
    return "\n\n".join(part for part in parts if part) + "\n"


def code(name: str, thing: Any) -> str:
    """The signature, as Python."""
    if isinstance(thing, griffe.Function):
        given = ", ".join(_parameters(thing))
        line = f"{'async ' if 'async' in thing.labels else ''}def {name}({given}) -> {thing.returns or 'None'}"
    elif isinstance(thing, griffe.Class):
        init = thing.all_members.get("__init__")
        given = ", ".join(_parameters(_final(init))) if init is not None and init.is_function else ""
        line = f"class {name}({given})" if given else f"class {name}"
    else:
        line = f"{name}: {thing.annotation or 'Any'}" + (f" = {thing.value}" if thing.value is not None else "")
    return f"```python\n{_wrapped(line)}\n```"


def _parameters(function: Any) -> Iterator[str]:
    """The parameters, as they are written."""
    star = False
    for one in function.parameters:
        if one.name in ("self", "cls"):
            continue
        kind = str(one.kind.value)
        if kind == "keyword-only" and not star:
            star = True
            yield "*"
        star = star or kind == "variadic positional"
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        default = f" = {one.default}" if one.default is not None and not prefix else ""
        yield f"{prefix}{one.name}" + (f": {one.annotation}" if one.annotation else "") + default


def _wrapped(line: str) -> str:
    """A signature that is too long for a line has one parameter on each line."""
    if len(line) <= 88 or "(" not in line:
        return line
    head, _, rest = line.partition("(")
    given, _, tail = rest.rpartition(")")
    parts = re.split(r", (?![^\[(]*[\])])", given)
    return head + "(\n" + "".join(f"    {part},\n" for part in parts) + ")" + tail


def prose(thing: Any) -> str:
    """A docstring as Markdown."""
    if thing.docstring is None:
        return ""
    text = _RAISES.sub(lambda found: f"- raises `{found[1]}`: ", thing.docstring.value.replace("``", "`"))
    text = _ARGUMENT.sub(r"- \1", text)
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        if line.startswith("- ") and not in_list:
            lines.append("")
        in_list = bool(line) and (in_list or line.startswith("- "))
        lines.append(line)
    return "\n".join(lines).strip()


def first(thing: Any) -> str:
    """The first sentence of a docstring, for a table."""
    text = prose(thing).partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return text.partition(". ")[0].rstrip(".") if text else ""


def _final(member: Any) -> Any:
    return member.final_target if isinstance(member, griffe.Alias) else member


def _words(member: Any) -> str:
    return f". {prose(member)}" if member.docstring is not None else ""


# -- settings ----------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting with its variable, its flag, its default and its docstring."""
    package = read_package()
    fields = package["settings.Settings"].members
    helps = flags()
    rows: list[str] = []
    for name, default in zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True):
        text = prose(fields[name]) or helps.get(name, ("", ""))[1]
        flag = helps.get(name, ("", ""))[0]
        shown = f"`{default}`" if default is not None else ""
        rows.append(f"| `JOBQ_{name.upper()}` | {f'`{flag}`' if flag else ''} | {shown} | {_cell(text)} |")
    return (
        "# Settings\n\nEach is read from the environment, and a flag of the command line wins. In Python:"
        " `Settings.from_env()`. [Workers](../workers.md#settings) explains the ones that matter most.\n\n"
        "| Variable | Flag | Default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def flags() -> dict[str, tuple[str, str]]:
    """The flag of each setting and its help."""
    found: dict[str, tuple[str, str]] = {}
    waiting: list[argparse.ArgumentParser] = [build_parser()]
    while waiting:
        actions: list[argparse.Action] = vars(waiting.pop())["_actions"]
        for action in actions:
            if isinstance(action.choices, dict):
                waiting += cast("dict[str, argparse.ArgumentParser]", action.choices).values()
            elif action.option_strings:
                name = RENAMED.get(action.dest, action.dest)
                found.setdefault(name, (action.option_strings[-1], action.help or ""))
    return found


# -- metrics -----------------------------------------------------------------------------------------------------------


def metrics() -> str:
    """Every metric of ``GET /metrics``, as the server makes them."""
    parts = [
        "# Metrics",
        "What `GET /metrics` of a server shows. [Monitoring](../monitoring.md#prometheus) has the metrics of workers,"
        " alerts and a dashboard.",
        "| Metric | Kind | Labels | |\n|---|---|---|---|",
    ]
    rows: list[str] = []
    for family in [*metrics_of({}), *metrics_of_server(Duties(), ())]:
        labels = ", ".join(vars(family)["_labelnames"])
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
    return "\n\n".join(parts) + "\n" + "\n".join(rows) + "\n"


# -- errors ------------------------------------------------------------------------------------------------------------


def kinds() -> list[type[Exception]]:
    """The exceptions of jobq, by name."""
    found = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, Exception)]
    return sorted((one for one in found if one.__module__ == errors.__name__), key=lambda one: one.__name__)


def error_index() -> str:
    """The list of all errors."""
    rows = [
        f"| [{kind.__name__}]({kind.__name__}.md) | {_cell((kind.__doc__ or '').partition('.')[0])} |"
        for kind in kinds()
    ]
    return (
        "# All errors\n\nEach error has a page, whose name is that of the class. [Errors](../errors.md) shows them"
        " by occasion, with an example.\n\n| Error | |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def problems() -> str:
    """The kinds of problems that REST answers with. The last word of a ``type`` is the anchor."""
    parts = [
        "# Problems",
        "REST answers every error with a [problem](https://www.rfc-editor.org/rfc/rfc9457). Its `type` never changes:"
        " `urn:jobq:problem:wrong-state` is described [here](#wrong-state). [REST](rest.md) lists them by route.",
    ]
    for kind in sorted(KINDS):
        made = [one.__name__ for one in causes(kind)]
        parts += [f"## {kind.slug}", f"{kind.status}: {kind.title}."]
        if made:
            parts.append("In Python: " + ", ".join(f"[{name}](../errors/{name}.md)" for name in made) + ".")
    return "\n\n".join(parts) + "\n"


def error(kind: type[Exception]) -> str:
    """The page of one error."""
    bases = [one.__name__ for one in kind.__mro__[1:] if one not in (Exception, BaseException, object)]
    parts = [f"# {kind.__name__}", inspect.cleandoc(kind.__doc__ or "").replace("``", "`")]
    for when, what in rows_of(kind.__name__):
        parts.append(f"**When**: {when}" + (f"\n\n**What to do**: {what}" if what else ""))
    if bases:
        parts.append("**It is also a** " + ", ".join(f"`{base}`" for base in bases) + ".")
    known = ([one for one in KINDS if base in causes(one)] for base in kind.__mro__)
    if found := next(filter(None, known), None):
        links = ", ".join(f"[`{one.type}`](../reference/problems.md#{one.slug})" for one in found)
        parts.append(f"**Over REST**: {found[0].status}, {links}.")
    parts.append("[All errors](all.md), [errors by occasion](../errors.md)")
    return "\n\n".join(parts) + "\n"


def rows_of(name: str) -> Iterator[tuple[str, str]]:
    """The rows of an error in the tables of docs/errors.md: when it comes, and what to do."""
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    for row in re.findall(rf"^\| `{name}(?:\(.*?\))?`[^|]*\|(.*)\|$", text, re.MULTILINE):
        when, _, what = re.sub(r"\]\((?!https?:)([^)]+)\)", r"](../\1)", row).partition(" | ")
        yield when.strip(), what.strip()


def _cell(text: str) -> str:
    """A text for a cell of a table."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())
