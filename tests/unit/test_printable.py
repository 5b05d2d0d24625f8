"""Text from clients as it is shown on a terminal."""

from __future__ import annotations

import json
import sys
import time
import unicodedata

import pytest

from jobq.printable import printable, printable_json, printable_lines

ALL = [chr(code) for code in range(sys.maxunicode + 1)]
ACTING = [c for c in ALL if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\u200c\u200d"]


def test_no_control_character_is_left():
    shown = printable("".join(ACTING))
    assert shown.isascii()
    assert shown.isprintable()
    assert printable("\x1b[31m\n\x9b\u202e\ud800") == r"\x1b[31m\n\x9b\u202e\ud800"


@pytest.mark.parametrize(
    "text", ["", "plain", "Grüße, 日本語　全角, עברית, naïve\u00a0x", "👩\u200d👩\u200d👧", r"a\nb"]
)
def test_ordinary_text_is_not_changed(text: str):
    assert printable(text) == text
    assert printable_json(text) == text


def test_escaped_json_is_an_equal_document():
    value = "".join(c for c in ACTING if c > "\x1f" and unicodedata.category(c) != "Cs")
    shown = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value
    assert shown.isprintable()


def test_lines_are_indented_so_that_none_can_be_forged():
    assert printable_lines("one\r\n\ttwo\n\nthree\x1b\n\n", "  ") == ["  one", "      two", "  ", r"  three\x1b"]
    assert printable_lines("") == [""]


@pytest.mark.parametrize("part", ["\x1b", "a\u202e", "\n", "\t", "x"])
def test_the_work_grows_with_the_length_of_the_text(part: str):
    text = part * ((1 << 18) // len(part))
    began = time.process_time()
    for show in (printable, printable_json, printable_lines):
        show(text)
    assert time.process_time() - began < 8
