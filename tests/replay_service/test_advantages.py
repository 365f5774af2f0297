"""What search found each action worth, from a segment to a batch for the language model."""

import dataclasses

import numpy as np
import pytest

from replay_service import JointTextSource, Replay, ReplayConfig, TargetConfig
from replay_service.storage import bytes_per_step, row_bytes

TARGETS = TargetConfig(unroll_steps=2, n_step=1)


def make_replay(spec, *, advantages: bool = True) -> Replay:
    config = ReplayConfig(capacity_mb=0.05, min_positions=1, advantages=advantages)
    return Replay(config, TARGETS, spec, seed=0)


def make_worth(make_segment, spec, sequence: int):
    """A segment whose advantages say which step they belong to."""
    segment = make_segment(spec, 9, sequence=sequence, with_text=True)
    steps = np.arange(9)[:, None] + np.array([0.25, 0.5]) + 10 * sequence
    return dataclasses.replace(segment, advantage=steps.astype(np.float16)).with_checksum()


def assert_belong(batch, segments) -> None:
    """Each row has the advantages and the action of the step that its prompt names."""
    assert len(batch.prompt) == len(batch.advantage) == len(batch.action)
    for prompt, advantage, action in zip(batch.prompt, batch.advantage, batch.action, strict=True):
        sequence, step = divmod(int(advantage[0]), 10)
        assert segments[sequence].prompt[step] == prompt
        assert int(action) == segments[sequence].action[step]
        assert advantage.tolist() == segments[sequence].advantage[step].tolist()


def test_batches_for_the_language_model_have_them(make_segment, vector_spec, tmp_path):
    replay = make_replay(vector_spec)
    segments = [make_worth(make_segment, vector_spec, i) for i in range(4)]
    assert replay.add(segments).n_rejected == 0
    assert_belong(replay.sample_text(40), segments)
    replay.save(tmp_path)
    restored = make_replay(vector_spec)
    restored.load(tmp_path)
    assert_belong(restored.sample_text(40), segments)
    with pytest.raises(ValueError, match="saved with advantages=True, this replay has False"):
        make_replay(vector_spec, advantages=False).load(tmp_path)
    assert_belong(JointTextSource([replay, restored], 30, seed=0).next(), segments)


def test_a_segment_without_them_counts_as_no_better_and_no_worse(make_segment, vector_spec):
    replay = make_replay(vector_spec)
    replay.add([make_segment(vector_spec, 9, with_text=True)])
    assert not replay.sample_text(10).advantage.any()


def test_a_replay_that_does_not_keep_them_is_as_small_as_before(make_segment, vector_spec):
    replay = make_replay(vector_spec, advantages=False)
    replay.add([make_worth(make_segment, vector_spec, 0)])
    assert replay.sample_text(10).advantage is None
    assert "advantage" not in replay.ring.tensors
    more = row_bytes(vector_spec, advantages=True) - row_bytes(vector_spec)
    assert more == 2 * vector_spec.n_actions
    assert bytes_per_step(vector_spec, advantages=True) - bytes_per_step(vector_spec) == more


@pytest.mark.parametrize("bad", ["nan", "shape"])
def test_bad_ones_are_refused(make_segment, vector_spec, bad):
    segment = make_worth(make_segment, vector_spec, 0)
    wrong = segment.advantage * np.float16("nan") if bad == "nan" else segment.advantage[:5]
    replay = make_replay(vector_spec)
    report = replay.add([dataclasses.replace(segment, advantage=wrong, checksum=0)])
    assert report.n_rejected == 1 and "advantage" in report.reasons[0]
