"""Every command of docs/quickstart.md is typed, those of the service for both frameworks."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from console import ROOT, Console, steps

if TYPE_CHECKING:
    from pathlib import Path

INSTALL = ("python3 -m venv", "pip install")
"""Tried by .ci/run, which installs the wheel into an environment of its own."""


@pytest.mark.timeout(400)  # four programs start one after the other, on a machine that may be busy
@pytest.mark.parametrize("command", ["uvicorn fastapi_service:app &", "python aiohttp_service.py &"])
def test_the_quickstart_works_as_it_is_written(command: str, redis_url: str, tmp_path: Path):
    for file in ("fastapi_service.py", "aiohttp_service.py"):
        shutil.copy(ROOT / "examples" / "quickstart" / file, tmp_path)
    assert command.removesuffix(" &") in (ROOT / "docs" / "quickstart.md").read_text()
    console = Console(tmp_path, redis_url)
    typed = [step for step in steps("quickstart.md") if not step[0].startswith(INSTALL)]
    assert len(typed) == 6
    if "aiohttp" in command:
        typed = typed[:3]  # what follows does not depend on the framework
    try:
        for step, shown in typed:
            if step.endswith("&"):
                console.start(command)
            else:
                console.run(step, shown)
    finally:
        console.stop()
