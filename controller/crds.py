"""Keeps our CustomResourceDefinitions what this version needs: Helm makes those in `crds/`, but no upgrade of it does.

A stored one may be of an earlier version, or of another driver whose objects we take over; the API server then drops
the fields that it does not know, silently.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from api.client import ApiError, Client, Json, NotFound, Unavailable, back_off_s, path
from api.crd import SCHEMA_ANNOTATION

log = logging.getLogger(__name__)

# Helm 4 applies `crds/` at every installation, under this name; what somebody else has set there it calls a conflict.
_HELM: Final = "helm"


async def renew_crds(client: Client, definitions: Iterable[Json]) -> None:
    """Apply those that are not as given; what is missing stays missing. Waits for the API server; raises nothing."""
    for definition in definitions:
        delays = back_off_s()
        while True:
            try:
                await _renew(client, definition)
            except Unavailable:
                await asyncio.sleep(next(delays))
                continue
            except NotFound:
                # Helm makes them when it installs, unless it is told to skip them, and at no upgrade.
                right = "kubectl apply --server-side --force-conflicts -f deployments/helm/partita/crds"
                log.error("crd_missing", extra={"crd": definition["metadata"]["name"], "right": right})
            except ApiError as error:
                log.error("crd_not_renewed", extra={"crd": definition["metadata"]["name"], "error": str(error)})
            break


async def _renew(client: Client, definition: Json) -> None:
    metadata = definition["metadata"]
    where = path("apiextensions.k8s.io/v1", "customresourcedefinitions", name=metadata["name"])
    stored = await client.get(where)
    found = (stored["metadata"].get("annotations") or {}).get(SCHEMA_ANNOTATION)
    if found != metadata["annotations"][SCHEMA_ANNOTATION]:
        await client.apply(where, definition, fieldManager=_HELM)
        log.info("crd_renewed", extra={"crd": metadata["name"], "had": found})
