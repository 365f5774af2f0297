"""The line on long work that is waited for."""

import re

from launch.control.runtime import Child
from launch.tracing.busy_line import MOST_SHOWN, busy_line
from launch.tracing.in_flight import InFlight


def test_a_long_save_says_how_much_it_has_written(tmp_path):
    in_flight, child = InFlight(), Child("replay-0", "replay", None)
    older, folder = tmp_path / "older", tmp_path / "new"
    for path, size in ((older, 8_000_000), (folder / "frames", 2_000_000)):
        path.mkdir(parents=True)
        (path / "block").write_bytes(bytes(size))
    in_flight.begin(child, "save", 10.0, (folder, older))
    assert busy_line(in_flight.work(), 11.0) == ""  # not long yet
    line = busy_line(in_flight.work(), 25.0)
    assert line == "replay-0 saves its part of a checkpoint, 15 s, 2 of about 8 MB"


def test_usual_work_is_not_told_and_many_are_counted():
    in_flight = InFlight()
    for index in range(MOST_SHOWN + 2):
        child = Child(f"replay-{index}", "replay", None)
        in_flight.begin(child, "load", 0.0, ("/nowhere",))
    in_flight.begin(Child("learner", "learner", None), "train", 0.0)
    line = busy_line(in_flight.work(), 60.0)
    assert "train" not in line and line.endswith("; and 2 more")
    assert len(re.findall("loads its part of a checkpoint, 60 s", line)) == MOST_SHOWN
