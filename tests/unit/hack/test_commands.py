"""What the commands in `hack/` say to arguments that they do not know, before they do anything."""

import os
import subprocess
from pathlib import Path

import pytest
from image.__main__ import main as build_images

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def asked_for_packages(tmp_path: Path) -> Path:
    """The folder of a `dpkg-query` that notes that it was asked, and says that nothing is missing."""
    program = tmp_path / "dpkg-query"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nprintf installed\n")
    program.chmod(0o755)
    return tmp_path


def call(command: str, first_in_path: Path, *arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "PATH": f"{first_in_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / "hack" / command, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert not (first_in_path / "asked").exists(), "nothing was prepared"
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("command", "arguments", "right"),
    [
        ("check", ("lnit",), "lint"),
        ("image", ("partitta",), "partita"),
        ("test", ("integraton",), "unit, integration or e2e"),
        ("test", ("e2e", "node", "chrat"), "amd chart computedomain"),
        ("test", ("node",), "after e2e its folders"),
    ],
)
def test_a_word_that_is_not_known_is_refused_at_once_with_those_that_are(
    asked_for_packages: Path, command: str, arguments: tuple[str, ...], right: str
) -> None:
    status, told = call(command, asked_for_packages, *arguments)
    assert status != 0
    assert arguments[-1] in told and right in told


@pytest.mark.parametrize(
    ("command", "told"), [("check", "manifests"), ("image", "partita-simulator"), ("test", "unit|integration|e2e")]
)
def test_a_command_that_is_asked_for_help_tells_its_arguments(
    asked_for_packages: Path, command: str, told: str
) -> None:
    status, text = call(command, asked_for_packages, "--help")
    assert status == 0
    assert told in text


def test_no_name_is_no_wrong_name() -> None:
    assert build_images(["--dry-run"]) == 0
