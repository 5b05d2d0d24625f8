"""The wheel and the sdist: what is in them, and that two builds are the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

pytest.importorskip("hatch_vcs")

ROOT = Path(__file__).parents[2]
EXTRAS = {"embedded", "uvloop", "cli", "otel"}


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build a wheel or an sdist with the build backend, as a release does."""
    folder.mkdir()
    words = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    # Archives of git have times of their own. A release is built from one.
    env = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(words, cwd=source, check=True, capture_output=True, env=env)
    (made,) = folder.iterdir()
    return made


def version_of(package: Path) -> str:
    """The version in the name of a wheel or an sdist."""
    return package.name.removesuffix(".tar.gz").split("-")[1]


def git(folder: Path, *words: str) -> str:
    who = [
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.com",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    ]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the sdist contains."""
    folder = tmp_path_factory.mktemp("unpacked")
    # Not tarfile: its filter, which newer Pythons want, is unknown to 3.11.2 of Debian 12.
    subprocess.run(["tar", "-x", "-f", str(sdist), "-C", str(folder)], check=True)
    (inner,) = folder.iterdir()
    return inner


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist as pip does where there is no wheel."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel") / "dist")


def test_the_wheel_holds_the_program_its_scripts_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"jobq", f"jobq-{version_of(wheel)}.dist-info"}
    lua = {path.name for path in (ROOT / "scripts" / "lua").glob("*.lua")}
    assert {Path(name).name for name in names if name.startswith("jobq/_lua/") and name.endswith(".lua")} == lua
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "jobq").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == python
    assert "jobq/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_metadata_say_what_an_index_shows(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (name,) = [one for one in archive.namelist() if one.endswith("METADATA")]
    metadata = message_from_bytes(archive.read(name))
    assert set(metadata.get_all("Provides-Extra") or ()) >= EXTRAS
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or ())
    (scripts,) = [one for one in archive.namelist() if one.endswith("entry_points.txt")]
    assert b"jobq = jobq.__main__:main" in archive.read(scripts)


def test_the_sdist_holds_what_its_tests_need_and_nothing_that_was_made(unpacked: Path):
    for needed in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "tests/conftest.py",
        "docs/README.md",
        "deploy",
    ):
        assert (unpacked / needed).exists(), needed
    made = {".venv", ".git", "dist", "__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache"}
    assert not [path for path in unpacked.rglob("*") if path.name in made]


def test_two_builds_are_the_same_bytes(wheel: Path, unpacked: Path, tmp_path: Path):
    assert build("wheel", unpacked, tmp_path / "again").read_bytes() == wheel.read_bytes()
    first = build("sdist", unpacked, tmp_path / "first")
    assert build("sdist", unpacked, tmp_path / "second").read_bytes() == first.read_bytes()


def test_the_version_is_that_of_the_tag_wherever_it_is_built(unpacked: Path, wheel: Path, tmp_path: Path):
    assert version_of(wheel) == version_of(build("wheel", unpacked, tmp_path / "sdist")), "an sdist keeps its version"
    clone = tmp_path / "clone"
    shutil.copytree(unpacked, clone, ignore=shutil.ignore_patterns("PKG-INFO", "tests", "docs", "benchmarks"))
    assert version_of(build("wheel", clone, tmp_path / "plain")) == "0.1.0.dev0", "there is no git"
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "one")
    untagged = version_of(build("wheel", clone, tmp_path / "untagged"))
    assert untagged.startswith("0.1.0.dev1+g"), untagged
    git(clone, "tag", "-a", "v0.3.0", "-m", "jobq 0.3.0")
    assert version_of(build("wheel", clone, tmp_path / "tagged")) == "0.3.0"
    git(clone, "archive", "--prefix=jobq/", "-o", str(tmp_path / "jobq.tar"), "v0.3.0")
    subprocess.run(["tar", "-x", "-f", str(tmp_path / "jobq.tar"), "-C", str(tmp_path)], check=True)
    assert version_of(build("wheel", tmp_path / "jobq", tmp_path / "archive")) == "0.3.0"
    (clone / "README.md").write_text("changed")
    git(clone, "commit", "-q", "-a", "-m", "two")
    assert version_of(build("wheel", clone, tmp_path / "later")).startswith("0.3.1.dev1+g")
