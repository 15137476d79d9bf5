"""`python -m kubeletplugin.make_key`: prints a new key for a node's IMEX daemon.

A program of its own, which the node plugin runs and never imports: the library takes 9 MiB for as long as a process
has it, and a key is made once a domain.
"""

import base64
import json
import sys

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_key() -> dict[str, str]:
    """A pair on P-256: `publicKey` as it is published (`api.clique.KEY_ATTRIBUTE`), `privateKey` as PEM of PKCS #8."""
    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"publicKey": base64.b64encode(point).decode(), "privateKey": private.decode()}


if __name__ == "__main__":
    json.dump(make_key(), sys.stdout)
