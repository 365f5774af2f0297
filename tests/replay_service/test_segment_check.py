"""Whatever a sender hands to replay is stored whole or refused by name; replay goes on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from replay_service import GameSpec, Replay, ReplayConfig, Segment, SegmentHeader, TargetConfig
from replay_service.segment import pack_json
from replay_service.segment_check import LONGEST_OPTION, LONGEST_PROMPT, check_segment

MANY = settings(max_examples=400)
SPEC = GameSpec((2,), "float32", n_actions=3)
N_STEPS = 4
FIELDS = [field.name for field in dataclasses.fields(Segment) if field.name != "header"]
HEADER_FIELDS = [field.name for field in dataclasses.fields(SegmentHeader)]
DTYPES = (
    hnp.scalar_dtypes()
    | st.sampled_from(["int16", "float32", "float16", "bool", ">f4", ">i2"]).map(np.dtype)
    | st.just(np.dtype(object))
)
SHAPES = st.one_of(
    st.sampled_from([(N_STEPS,), (N_STEPS, 3), (N_STEPS + 1, 2), (0,), ()]),
    hnp.array_shapes(max_dims=3, max_side=5),
)


@st.composite
def arrays(draw):
    dtype, shape = draw(DTYPES), draw(SHAPES)
    if dtype.hasobject:
        return np.full(shape, draw(st.sampled_from([None, "x", 1.0])), dtype=object)
    return draw(hnp.arrays(dtype, shape))


FLOATS = st.floats(width=32)
RIGHT_SHAPE = st.one_of(  # what only a look at the values can tell from good columns
    hnp.arrays(np.float32, (N_STEPS,), elements=FLOATS),
    hnp.arrays(np.float32, (N_STEPS, 3), elements=FLOATS),
    hnp.arrays(np.float32, (N_STEPS + 1, 2), elements=FLOATS),
    hnp.arrays(np.int16, (N_STEPS,)),
    hnp.arrays(np.bool_, (N_STEPS,)),
    hnp.arrays(np.bool_, (N_STEPS, 3)),
)
TEXTS = st.text(max_size=5) | st.sampled_from(["\ud800", "\0", "x" * (LONGEST_PROMPT + 1)])
OTHERS = st.one_of(
    st.none(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    FLOATS,
    st.booleans(),
    TEXTS,
    st.tuples(TEXTS, TEXTS, TEXTS, TEXTS),
    st.tuples(*[st.tuples(TEXTS, TEXTS, TEXTS) | st.just(())] * N_STEPS),
    st.lists(TEXTS, max_size=4),
    st.just({}),
    st.just([[]]),
    st.just(np.ma.masked_array(np.zeros(N_STEPS, np.float32), mask=True)),
    st.just(np.broadcast_to(np.float32(0), (10**9,))),
)
VALUES = RIGHT_SHAPE | arrays() | OTHERS


def make_replay(n_rows: int = 60) -> Replay:
    config = ReplayConfig(capacity_mb=n_rows * 1e-4, text_mb=0.1, min_positions=1)
    return Replay(config, TargetConfig(unroll_steps=1, n_step=1), SPEC, seed=0)


def assert_sound(replay: Replay, make_segment, refused: object) -> None:
    """Replay takes good segments, and every batch holds numbers that can be learnt from."""
    good = make_segment(SPEC, N_STEPS, actor=7, with_text=True, with_legal=True).with_checksum()
    report = replay.add([refused, good])
    assert report.n_positions == N_STEPS + (0 if report.n_rejected else refused.n_trainable)
    for batch in (replay.sample(32), replay.sample(32)):
        for name in ("obs", "reward", "policy", "root_value", "importance"):
            assert bool(getattr(batch, name).float().isfinite().all()), name
        assert int(batch.action.min()) >= 0 and int(batch.action.max()) < SPEC.n_actions
    text = replay.sample_text(8)
    assert text is not None
    assert all(prompt.encode() for prompt in text.prompt)


def offer(make_segment, segment: object, names: set[str]) -> None:
    """`segment` is stored, or refused with a reason that has one of `names`; replay is sound."""
    replay = make_replay()
    before = replay.ring.n_rows_used, replay.ring.high_row, replay.n_positions
    report = replay.add([segment])
    if report.n_rejected:
        (reason,) = report.reasons
        assert any(name in reason for name in names) and len(reason) < 500, reason
        reason.encode()
        assert (replay.ring.n_rows_used, replay.ring.high_row, replay.n_positions) == before
    else:
        assert report.n_positions == segment.n_trainable
    assert_sound(make_replay(), make_segment, segment)


@settings(max_examples=2_000)
@given(name=st.sampled_from(FIELDS), value=VALUES, with_text=st.booleans())
def test_any_value_of_any_field_is_taken_or_refused_by_name(make_segment, name, value, with_text):
    segment = make_segment(SPEC, N_STEPS, with_text=with_text, with_legal=with_text)
    broken = dataclasses.replace(segment, **{name: value})
    # One that is wrong may show in another field, which no longer fits it.
    for pair in ({"action", "policy", "legal", "obs"}, {"terminated", "truncated"}):
        if name in pair - {"obs"}:
            offer(make_segment, broken, pair)
            return
    offer(make_segment, broken, {name})


@settings(max_examples=1_000)
@given(name=st.sampled_from(HEADER_FIELDS), value=OTHERS | st.sampled_from([2**31, 2**63, -2]))
@example("weight_version_max", 2**31)  # stored as int32
@example("sequence", np.int64(3))  # would not fit into a checkpoint's JSON
@example("level", "\udfff")
def test_any_header_is_taken_or_refused_by_the_name_of_its_field(make_segment, name, value):
    segment = make_segment(SPEC, N_STEPS)
    header = dataclasses.replace(segment.header, **{name: value})
    offer(make_segment, dataclasses.replace(segment, header=header), {f"header.{name[:14]}"})


@MANY
@given(payload=OTHERS | st.lists(OTHERS | arrays(), max_size=4))
def test_any_payload_is_answered(make_segment, payload):
    replay = make_replay()
    report = replay.add(payload)
    assert report.n_positions == 0
    if not isinstance(payload, list | tuple) or payload:
        assert report.n_rejected >= 1 and all(report.reasons)
    assert_sound(replay, make_segment, None)


@MANY
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), field=st.sampled_from(FIELDS[:8]))
def test_one_bit_flipped_on_the_way_is_noticed(make_segment, position, bit, field):
    signed = make_segment(SPEC, N_STEPS, with_legal=True).with_checksum()
    column = getattr(signed, field).copy()
    content = column.reshape(-1).view(np.uint8)
    content[position % len(content)] ^= 1 << bit
    with pytest.raises(ValueError):
        check_segment(dataclasses.replace(signed, **{field: column}), SPEC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ("x" * (LONGEST_PROMPT + 1),) * N_STEPS}, "prompt has 65537 characters"),
        ({"prompt": ("\ud800",) * N_STEPS}, "prompt is not valid Unicode"),
        ({"prompt": (b"x",) * N_STEPS}, "prompt is bytes, expected text"),
        ({"options": (("a", "b", "x" * (LONGEST_OPTION + 1)),) * N_STEPS}, "options has 4097"),
        ({"policy": np.full((N_STEPS, 3), 0.5, np.float32)}, "policy has a row that sums to 1.5"),
        ({"policy": np.zeros((N_STEPS, 3), np.float32)}, "policy has a row that sums to 0"),
        ({"legal": np.zeros((N_STEPS, 3), bool)}, "action is one that legal rules out"),
        ({"reward": np.zeros(N_STEPS, object)}, "reward is object"),
        ({"obs": np.zeros((N_STEPS + 1, 2), ">f4")}, "obs is >f4"),
        ({"n_trainable": True}, "n_trainable is bool"),
        ({"prior_version": np.full(N_STEPS, -2, np.int32)}, "prior_version holds -2, expected -1"),
        ({"checksum": 2**32}, "checksum is 4294967296"),
        ({"checksum": 1}, "checksum does not match"),
    ],
)
def test_what_is_refused(make_segment, changes, message):
    segment = dataclasses.replace(make_segment(SPEC, N_STEPS), **changes)
    with pytest.raises(ValueError, match=message):
        check_segment(segment, SPEC)


def test_a_policy_on_an_illegal_action_is_refused(make_segment):
    segment = make_segment(SPEC, N_STEPS)
    legal = np.zeros((N_STEPS, 3), bool)
    legal[np.arange(N_STEPS), segment.action] = True
    with pytest.raises(ValueError, match="policy has a share of an action that legal rules out"):
        check_segment(dataclasses.replace(segment, legal=legal), SPEC)


def test_a_segment_larger_than_replay_costs_no_other_its_place(make_segment):
    replay = make_replay()
    held = make_segment(SPEC, 10, sequence=1)
    replay.add([held])
    huge = make_segment(SPEC, 200, sequence=2)
    report = replay.add([huge])
    assert report.n_evicted_positions == 0 and "obs needs 201 rows" in report.reasons[0]
    assert replay.n_positions == 10


def test_what_another_version_of_the_class_sent_is_refused(make_segment):
    segment = make_segment(SPEC, N_STEPS)
    partial = object.__new__(Segment)
    object.__setattr__(partial, "header", segment.header)
    header = object.__new__(SegmentHeader)
    report = make_replay().add([partial, dataclasses.replace(segment, header=header)])
    assert "obs is missing" in report.reasons[0]
    assert "header.run_id is missing" in report.reasons[1]


@MANY
@given(
    content=st.dictionaries(
        st.sampled_from([*FIELDS, "header"]),
        arrays() | hnp.arrays(np.uint8, st.integers(0, 30)),
    ),
    header=st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.floats(),
        lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=3), node),
    ),
)
def test_arrays_of_a_file_become_a_segment_or_a_clear_error(make_segment, content, header):
    whole = make_segment(SPEC, N_STEPS).to_arrays()
    for found in (content, whole | content, whole | {"header": pack_json(header)}):
        try:
            check_segment(Segment.from_arrays(found), SPEC)
        except ValueError:
            continue
        assert_sound(make_replay(), make_segment, Segment.from_arrays(found))
