"""Segments: what validation names, checksums, and the way through npz without pickle."""

import dataclasses
import io

import numpy as np
import pytest

from replay_service import Segment
from replay_service.segment_check import check_segment


@pytest.mark.parametrize(
    ("field", "damage", "message"),
    [
        (
            "obs",
            lambda s: s.obs[:-1],
            r"obs is uint8 \(6, 1, 4, 4\), expected uint8 \(7, 1, 4, 4\)",
        ),
        ("obs", lambda s: s.obs.astype(np.float32), "obs is float32"),
        ("action", lambda s: s.action.astype(np.int64), "action is int64"),
        ("action", lambda s: s.action + np.int16(3), "expected 0..2"),
        ("action", lambda s: s.action[:0], "action has length 0"),
        ("reward", lambda s: s.reward * np.float32("nan"), "reward holds NaN"),
        ("policy", lambda s: -s.policy, "policy holds -"),
        ("root_value", lambda s: s.root_value + np.float16("inf"), "root_value holds NaN"),
        ("terminated", lambda s: ~s.terminated, "terminated is set on 5 steps before the last"),
        ("truncated", lambda s: s.terminated, "both set"),
        ("n_trainable", lambda s: 7, r"n_trainable is 7, expected 1\.\.6"),
        ("legal", lambda s: np.ones((6, 4), dtype=bool), "legal is bool"),
        ("prompt", lambda s: ("",), "prompt has 1 entries, expected 6"),
        ("options", lambda s: (("left",),) * 6, r"options has rows of 1 texts"),
        (
            "header",
            lambda s: dataclasses.replace(s.header, schema_version=9),
            "header.schema_version is 9",
        ),
    ],
)
def test_validation_names_the_field(make_segment, image_spec, field, damage, message):
    segment = make_segment(image_spec, 6)
    check_segment(segment, image_spec)
    broken = dataclasses.replace(segment, **{field: damage(segment)})
    with pytest.raises(ValueError, match=message):
        check_segment(broken, image_spec)


def test_checksum_covers_every_column(make_segment, image_spec):
    segment = make_segment(image_spec, 6, with_text=True, with_legal=True)
    assert segment.verify(), "a segment without a checksum passes"
    signed = segment.with_checksum()
    assert signed.checksum != 0 and signed.verify()
    for name in ("obs", "action", "reward", "policy", "root_value", "priority", "legal"):
        column = getattr(signed, name).copy()
        column.reshape(-1).view(np.uint8)[3] ^= 1
        assert not dataclasses.replace(signed, **{name: column}).verify(), name
    assert not dataclasses.replace(signed, n_trainable=2).verify()
    assert not dataclasses.replace(signed, prompt=("other",) * 6).verify()


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("with_legal", [False, True])
def test_npz_round_trip_needs_no_pickle(make_segment, image_spec, with_text, with_legal):
    segment = make_segment(image_spec, 6, with_text=with_text, with_legal=with_legal)
    signed = segment.with_checksum()
    file = io.BytesIO()
    np.savez(file, **signed.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        read = Segment.from_arrays(dict(arrays))
    check_segment(read, image_spec)
    assert read.verify() and read.checksum == signed.checksum
    assert read.header == signed.header
    assert read.prompt == signed.prompt and read.options == signed.options


def test_incomplete_arrays_are_named(make_segment, image_spec):
    arrays = make_segment(image_spec, 6).to_arrays()
    del arrays["reward"], arrays["header"]
    with pytest.raises(ValueError, match="lack header, reward"):
        Segment.from_arrays(arrays)
