"""Secrets of a job on their way: encrypted with the cluster's token, which both ends have.

Ray writes the environment variables of a job to the logs of each node, so they must not be
readable there. Who has the token can read them, but may run code on the cluster anyway.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from launch.access import SecretError

SALT_BYTES = 16
NONCE_BYTES = 12  # NIST SP 800-38D, section 8.2
# RFC 7914, section 2: 32 MiB and some 0.1 s a guess, in case a person thought a token up.
COST = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26}


def seal(secrets: Mapping[str, str], token: str) -> str:
    """Printable text from which only `token` gets variable names and values back."""
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    locked = AESGCM(_key(token, salt)).encrypt(nonce, json.dumps(dict(secrets)).encode(), None)
    return base64.urlsafe_b64encode(salt + nonce + locked).decode()


def unseal(text: str, token: str) -> dict[str, str]:
    """What was sealed. Raises SecretError if it was with another token, or was changed."""
    try:
        raw = base64.urlsafe_b64decode(text.encode())
        salt, rest = raw[:SALT_BYTES], raw[SALT_BYTES:]
        nonce, locked = rest[:NONCE_BYTES], rest[NONCE_BYTES:]
        return json.loads(AESGCM(_key(token, salt)).decrypt(nonce, locked, None))
    except (InvalidTag, ValueError) as error:
        raise SecretError(
            "the job's secrets can't be read with this cluster's token: they were sealed with "
            "another; submit the job again"
        ) from error


def _key(token: str, salt: bytes) -> bytes:
    return hashlib.scrypt(token.encode(), salt=salt, dklen=32, **COST)
