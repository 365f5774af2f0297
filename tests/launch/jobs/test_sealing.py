"""Secrets on their way: only the token opens them, and only whole."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.access import SecretError
from launch.jobs import sealing
from launch.jobs.sealing import seal, unseal

secrets = st.dictionaries(st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), st.text(), min_size=1)
tokens = st.text(min_size=1)


@pytest.fixture(autouse=True, scope="module")
def quick_keys():
    """An opening is meant to take long; here it would only take the tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sealing.COST, "n", 2**4)
        yield


@settings(max_examples=50)
@given(secrets=secrets, token=tokens, other=tokens, data=st.data())
def test_only_the_token_opens_what_was_sealed_and_only_unchanged(secrets, token, other, data):
    sealed = seal(secrets, token)
    assert unseal(sealed, token) == secrets
    assert not any(len(value) > 3 and value in sealed for value in secrets.values())
    assert seal(secrets, token) != sealed, "equal secrets look different each time"
    if other != token:
        with pytest.raises(SecretError, match="sealed with another"):
            unseal(sealed, other)
    raw = bytearray(base64.urlsafe_b64decode(sealed))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1
    with pytest.raises(SecretError):
        unseal(base64.urlsafe_b64encode(raw).decode(), token)


@pytest.mark.parametrize("damaged", ["", "AAAA", "not base64!", "é"])
def test_what_was_never_sealed_is_refused(damaged):
    with pytest.raises(SecretError):
        unseal(damaged, "token")
