"""How to reach the API server: address, TLS and bearer token, by the `kubernetes` package's own rules.

Only the modules needed are loaded. The package's `__init__` files import every part of it (sync client, typed models,
websockets, OAuth: 17 MiB more in a process that runs on every node), so the outer packages are entered as bare ones.
"""

import asyncio.sslproto
import importlib.util
import os
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from api.errors import PartitaError

_BARE_PACKAGES: Final = ("kubernetes", "kubernetes.aio", "kubernetes.aio.config", "kubernetes.aio.utils")
_RELOAD_INTERVAL_S: Final = 10.0
_TOKEN_AGE_S: Final = 60.0  # as the package has it, but by a clock that nobody sets; the kubelet renews much earlier
# A buffer of each connection with TLS, 256 KiB by default, where a record has 16 at most. Not documented: a Python that
# does not know it takes its own size.
asyncio.sslproto.SSLProtocol.max_size = 64 * 1024


@contextmanager
def without_system_certificates() -> Iterator[None]:
    """For the import of aiohttp, which reads all of the machine's CA certificates for contexts that we never use."""
    before = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    os.environ["SSL_CERT_FILE"] = os.environ["SSL_CERT_DIR"] = os.devnull
    try:
        yield
    finally:
        for name, value in zip(("SSL_CERT_FILE", "SSL_CERT_DIR"), before, strict=True):
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class ConnectionUnknown(PartitaError):
    """Neither a usable kubeconfig nor a service account says where the API server is."""

    reason = "ConnectionUnknown"


def _enter_packages() -> None:
    """Register packages whose `__init__` only gathers others, so that importing a submodule imports that one alone."""
    if "kubernetes" in sys.modules:
        return
    spec = importlib.util.find_spec("kubernetes")
    if spec is None or not spec.submodule_search_locations:
        raise ConnectionUnknown("the Python package `kubernetes` is not installed")
    root = spec.submodule_search_locations[0]
    for name in _BARE_PACKAGES:
        package = ModuleType(name)
        package.__path__ = ["/".join([root, *name.split(".")[1:]])]
        sys.modules[name] = package


class Connection:
    """Where the API server is and how to prove who we are."""

    def __init__(
        self, configuration: Any, kubeconfig: str | None, context: str | None = None, namespace: str | None = None
    ) -> None:
        self._configuration = configuration
        self._kubeconfig = kubeconfig
        self._context = context
        self.namespace = namespace
        """That of the kubeconfig's context; None where it has none."""
        self._loaded_at_s = time.monotonic()
        self._certificates: tuple[bytes, ...] = ()
        self._tls: ssl.SSLContext | None = None

    @classmethod
    async def load(cls, kubeconfig: str | None, context: str | None = None) -> "Connection":
        """From that kubeconfig file (`context` None: its current one), or from the pod's service account when None.

        Raises ConnectionUnknown.
        """
        configuration, namespace = await _load(kubeconfig, context)
        return cls(configuration, kubeconfig, context, namespace)

    @property
    def host(self) -> str:
        """`https://10.96.0.1:443`, without a trailing slash."""
        return str(self._configuration.host).rstrip("/")

    @property
    def proxy(self) -> str | None:
        return self._configuration.proxy or None

    @property
    def server_hostname(self) -> str | None:
        """The name to verify the certificate against, where it is not the address."""
        return self._configuration.tls_server_name or None

    def tls(self) -> ssl.SSLContext:
        """Another one once certificates or keys have been found changed. Raises OSError."""
        if self._tls is None:
            from kubernetes.aio.client.rest import RESTClientObject

            self._certificates = _read_certificates(self._configuration)
            self._tls = RESTClientObject(self._configuration).ssl_context
        return self._tls

    async def authorization(self) -> str | None:
        """The Authorization header; a rotated service account token is read again within a minute.

        Raises ConnectionUnknown, OSError.
        """
        if self._kubeconfig is None and time.monotonic() - self._loaded_at_s > _TOKEN_AGE_S:
            await self._reload()
        token: str | None = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return token.strip() if token else None

    async def renew(self) -> None:
        """Load the credentials again (an expired token or certificate, from a file or a program), at most every ten
        seconds. Raises ConnectionUnknown, OSError.
        """
        if time.monotonic() - self._loaded_at_s > _RELOAD_INTERVAL_S:
            await self._reload()

    async def _reload(self) -> None:
        self._loaded_at_s = time.monotonic()
        configuration, _ = await _load(self._kubeconfig, self._context)
        if _read_certificates(configuration) != self._certificates:
            self._tls = None
        self._configuration = configuration


def _read_certificates(configuration: Any) -> tuple[bytes, ...]:
    """And keys."""
    files = configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file
    return tuple(Path(file).read_bytes() for file in files if file)


def _exists(file: str) -> bool:
    return bool(file) and Path(file).expanduser().exists()


async def _load(kubeconfig: str | None, context: str | None) -> tuple[Any, str | None]:
    """The package's configuration, and the namespace of the context."""
    if kubeconfig is not None and not any(map(_exists, kubeconfig.split(os.pathsep))):
        raise ConnectionUnknown(f"kubeconfig {kubeconfig}: there is no such file")
    _enter_packages()
    from kubernetes.aio.client.configuration import Configuration

    # Configuration.__call__ copies a process-wide default; `type.__call__` is the package's own way round it.
    configuration = type.__call__(Configuration)
    namespace: str | None = None
    try:
        if kubeconfig is None:
            from kubernetes.aio.config.incluster_config import load_incluster_config

            load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=configuration, try_refresh_token=False
            )
        else:
            from kubernetes.aio.config.kube_config import load_kube_config

            loader = await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig,
                context=context,
                client_configuration=configuration,
                persist_config=False,
                temp_file_path=None,
            )
            namespace = loader.current_context["context"].get("namespace")
    except Exception as error:  # the package does not say what it raises for a bad file
        where = f"kubeconfig {kubeconfig}" if kubeconfig else "service account of this pod"
        which = f", context {context}" if context else ""
        raise ConnectionUnknown(f"{where}{which}: {str(error) or type(error).__name__}") from error
    return configuration, namespace
