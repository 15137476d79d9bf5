"""What `hack/check` finds by itself, without another tool."""

import ast
from pathlib import Path

from check import manifests, size
from generate import protos


def test_a_function_is_measured_without_its_docstring() -> None:
    body = "\n".join(["    x = 1"] * 38)
    words = "\n".join(["    words"] * 30)
    assert size.find_long_functions("m.py", ast.parse(f'def f():\n    """\n{words}\n    """\n{body}\n')) == []
    (finding,) = size.find_long_functions("m.py", ast.parse(f"def f():\n{body}\n{body}\n"))
    assert "f() has 77 lines; 40 at most" in finding


def test_a_key_that_stands_twice_is_found(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: 1\nb: 2\na: 3\n")
    (finding,) = manifests.check([file])
    assert "key 'a' twice" in finding


def test_a_sample_says_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "samples" / "x.yaml"
    file.parent.mkdir()
    file.write_text("apiVersion: v1\nkind: Pod\nmetadata: {}\n")
    (finding,) = manifests.check([file])
    assert "has no metadata.name" in finding


def test_generated_messages_may_differ_in_the_compilers_release_only() -> None:
    text = "# Protobuf Python Version: {0}\na\n_runtime_version.ValidateProtobufRuntimeVersion(\n    {0},\n)\nb\n"
    assert protos.comparable(text.format(1)) == protos.comparable(text.format(2)) == "a\nb"
    assert protos.comparable("a\nc\n") != "a\nb"
