"""Mark the nodes that get simulated hardware, or unmark them. Runs in a hook Job, with the Job's own token.

Arguments: the label selector of the nodes; the label to set, as KEY=VALUE, or KEY alone to take it away.
"""

import json
import os
import ssl
import sys
import urllib.parse
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"


def call(method, path, body=None):
    request = urllib.request.Request(SERVER + path, None if body is None else json.dumps(body).encode(), method=method)
    request.add_header("Authorization", "Bearer " + (ACCOUNT / "token").read_text())
    request.add_header("Content-Type", "application/merge-patch+json")
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, context=trust, timeout=30) as answer:
        return json.load(answer)


selector, label = sys.argv[1:]
key, _, value = label.partition("=")
nodes = call("GET", "/api/v1/nodes?" + urllib.parse.urlencode({"labelSelector": selector}))["items"]
for name in sorted(node["metadata"]["name"] for node in nodes):
    call("PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": {key: value or None}}})
    print(f"{name}: {label}")
