"""GPU models from `profiles/*.toml`, and node profiles: `h100`, `h100x2`, `a100-40x4+h100x4`, `gb200:clique=2`."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "profiles"
MAX_GPUS = 32
_PART = re.compile(r"(?P<model>[a-z0-9-]+?)(x(?P<count>\d+))?((:)(?P<options>[^+]*))?")


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs of one model in a node."""

    model: str
    count: int
    clique: int | None = None
    cluster: str | None = None


def model_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_model(name: str) -> dict[str, Any]:
    with (FOLDER / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


def parse_spec(spec: str) -> tuple[Group, ...]:
    """`<model>[xN][:clique=C][:cluster=UUID]`, joined by `+`; `none` is a node without GPUs. Raises ValueError."""
    if spec == "none":
        return ()
    groups = tuple(_parse_group(part, spec) for part in spec.split("+"))
    if sum(group.count for group in groups) > MAX_GPUS:
        raise ValueError(f"profile {spec!r}: a simulated node has at most {MAX_GPUS} GPUs")
    return groups


def _parse_group(part: str, spec: str) -> Group:
    match = _PART.fullmatch(part)
    if not match or match["model"] not in model_names():
        raise ValueError(f"profile {spec!r}: {part!r} is not <model>[xN] with a model of {', '.join(model_names())}")
    options = dict(option.partition("=")[::2] for option in (match["options"] or "").split(":") if option)
    unknown = sorted(set(options) - {"clique", "cluster"})
    if unknown:
        raise ValueError(f"profile {spec!r}: unknown option {unknown[0]!r}; known: clique, cluster")
    clique = options.get("clique")
    if clique is not None and not clique.isdigit():
        raise ValueError(f"profile {spec!r}: clique must be a number, not {clique!r}")
    count = int(match["count"]) if match["count"] else int(read_model(match["model"])["gpus"])
    if not count:
        raise ValueError(f"profile {spec!r}: {part!r} asks for no GPU; a node without GPUs is 'none'")
    return Group(match["model"], count, None if clique is None else int(clique), options.get("cluster"))
