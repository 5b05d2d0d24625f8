"""docs/cli.md agrees with the command line."""

from __future__ import annotations

import re
import shlex

from cli_page import PAGE, START, reference

from jobq.cli.parser import build_parser


def test_the_reference_is_that_of_the_parser():
    assert PAGE.read_text().partition(START)[2].strip() == reference().strip(), "run: python -m tests.cli.cli_page"


def test_the_examples_can_be_typed():
    found = re.findall(r"^jobq .+$", PAGE.read_text().partition(START)[0], re.MULTILINE)
    assert len(found) > 15
    for line in found:
        build_parser().parse_args(shlex.split(line, comments=True)[1:])
