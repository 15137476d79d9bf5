"""Message modules and their type stubs from `kubeletplugin/proto/*.proto`."""

import tempfile
from pathlib import Path

from grpc_tools import protoc

FOLDER = "kubeletplugin/proto"


def build_outputs(root: Path) -> dict[str, str]:
    """Path from the root -> text of every module that protoc makes of our .proto files."""
    sources = sorted((root / FOLDER).glob("*.proto"))
    if not sources:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"-I{root}", f"--python_out={scratch}", f"--pyi_out={scratch}", *map(str, sources)]
        if status := protoc.main(["protoc", *arguments]):
            raise SystemExit(f"protoc ended with status {status} for {', '.join(path.name for path in sources)}")
        made = sorted(Path(scratch).rglob("*.py*"))
        return {path.relative_to(scratch).as_posix(): path.read_text() for path in made}


def comparable(text: str) -> str:
    """The text without what only names the compiler's release: two releases may differ in nothing else."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if "ValidateProtobufRuntimeVersion" in line), None)
    if start is not None:
        end = next(i for i in range(start, len(lines)) if lines[i].startswith(")"))
        del lines[start : end + 1]
    return "\n".join(line for line in lines if not line.startswith("# Protobuf Python Version"))
