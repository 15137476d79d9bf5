"""`partita`: where it connects and in which namespace it looks, as kubectl does."""

import asyncio
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from api.client import NotFound
from api.connection import ConnectionUnknown
from controller.cli import build_parser, find_kubeconfig, run


def write_kubeconfig(file: Path, address: str = "http://127.0.0.1:9") -> str:
    """The current context, `mine`, has a namespace, and `bare` none."""
    contexts = {"mine": {"cluster": "c", "namespace": "team"}, "bare": {"cluster": "c"}}
    config = {
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "contexts": [{"name": name, "context": context} for name, context in contexts.items()],
        "current-context": "mine",
    }
    file.write_text(yaml.safe_dump(config))
    return str(file)


@pytest.mark.parametrize(
    ("flags", "namespace"),
    [([], "team"), (["--context", "bare"], "default"), (["--context", "mine"], "team"), (["-n", "other"], "other")],
)
def test_a_pod_is_looked_for_in_the_namespace_of_the_context_unless_another_is_named(
    tmp_path: Path, flags: list[str], namespace: str
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"message": "none"}, status=404)

    async def scenario() -> None:
        app = web.Application()
        app.router.add_get("/{tail:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        file = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{runner.addresses[0][1]}")
        with pytest.raises(NotFound):
            await run(build_parser().parse_args(["explain", "pod", "p", "--kubeconfig", file, *flags]))
        await runner.cleanup()

    asyncio.run(scenario())
    assert asked == [f"/api/v1/namespaces/{namespace}/pods/p"]


@pytest.mark.parametrize("verb", [["explain", "pod", "p"], ["get", "domains"]])
def test_the_kubeconfig_and_its_context_are_named_before_the_verb_or_after_it(verb: list[str]) -> None:
    flags = ["--kubeconfig", "F", "--context", "c"]
    for line in ([*flags, *verb], [*verb, *flags], [*flags[:2], *verb, *flags[2:]]):
        options = build_parser().parse_args(line)
        assert (options.kubeconfig, options.context) == ("F", "c")


def test_a_missing_file_or_context_is_named_and_nothing_else_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*flags: str) -> str:
        with pytest.raises(ConnectionUnknown) as caught:
            asyncio.run(run(build_parser().parse_args(["explain", "pod", "p", *flags])))
        return str(caught.value)

    there, nowhere = write_kubeconfig(tmp_path / "config"), str(tmp_path / "nowhere")
    assert fail("--kubeconfig", nowhere) == f"kubeconfig {nowhere}: there is no such file"
    assert f"kubeconfig {there}, context other: " in fail("--kubeconfig", there, "--context", "other")
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no kubeconfig is named by --kubeconfig or $KUBECONFIG" in fail()
    assert not caplog.records


def test_in_a_pod_no_kubeconfig_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert find_kubeconfig(build_parser().parse_args(["get", "domains"])) is None
