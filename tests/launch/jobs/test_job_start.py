"""How a job begins on the head: versions, secrets, and where its runs go."""

import os

import pytest

from launch import job
from launch.access import SecretError
from launch.jobs import environment
from launch.jobs.environment import STOP_WAIT, job_environment, keep_runs
from launch.jobs.sending import read_secrets, request_for


@pytest.fixture
def on_head(tmp_path, monkeypatch):
    """The folder that a job starts in; its variables are set by `given`."""
    (tmp_path / "package").mkdir()
    monkeypatch.chdir(tmp_path / "package")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token")
    return tmp_path


def given(monkeypatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_job_has_its_secrets_and_the_time_that_its_stop_takes(on_head, monkeypatch, capsys):
    secrets = {"MY_KEY": "a value that is nowhere else"}
    variables = job_environment(45.5, secrets, "the token")
    assert variables[STOP_WAIT] == "76"
    assert secrets["MY_KEY"] not in str(variables)
    given(monkeypatch, variables)
    monkeypatch.delenv("MY_KEY", raising=False)
    seen = {}
    monkeypatch.setattr("launch.train.main", lambda arguments: seen.update(os.environ) or 75)
    assert job.main(["--seed", "1"]) == 75
    assert seen["MY_KEY"] == secrets["MY_KEY"]
    assert environment.SECRETS not in seen
    text = capsys.readouterr().out
    assert "[job] secrets: MY_KEY\n" in text
    assert text.endswith("[job] exit code 75\n")
    assert secrets["MY_KEY"] not in text


def test_runs_outlast_the_folder_of_a_job(on_head):
    keep_runs(on_head / "package")
    (on_head / "package" / "runs" / "mine").mkdir()
    assert (on_head / "home" / "warpzone" / "runs" / "mine").is_dir()
    keep_runs(on_head / "package")  # another job with the same package


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({environment.SUBMITTED_BY: "Ray 2.59.1 on Python 3.11"}, "from Ray 2.59.1 on Python 3.11"),
        ({environment.SUBMITTED_BY: "Ray 2.60.0 on Python 3.12"}, "from Ray 2.60.0 on Python 3.12"),
        ({"RAY_AUTH_TOKEN": "another token"}, "sealed with another"),
    ],
)
def test_a_job_that_can_not_run_here_says_why_and_begins_nothing(
    on_head, monkeypatch, capsys, change, words
):
    given(monkeypatch, job_environment(120.0, {"MY_KEY": "value"}, "the token") | change)
    monkeypatch.setattr("launch.train.main", lambda arguments: pytest.fail("it was begun"))
    assert job.main([]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == "[job] exit code 2\n"
    assert not (on_head / "home").exists()


def test_secrets_need_a_cluster_that_keeps_them():
    with pytest.raises(SecretError, match="RAY_AUTH_MODE=token"):
        job_environment(120.0, {"MY_KEY": "value"}, None)


def test_secrets_come_from_variables_and_files_and_are_never_repeated(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("from a file\n")
    monkeypatch.setenv("KEY", "from here")
    monkeypatch.delenv("NONE", raising=False)
    given_names = ["KEY", f"OTHER={tmp_path / 'key'}"]
    assert read_secrets(given_names) == {"KEY": "from here", "OTHER": "from a file"}
    for bad, words in (
        ("NONE", "not set"),
        ("OTHER=hunter22", "no such file"),
        ("my hunter22", "name of a variable"),
    ):
        with pytest.raises(SecretError, match=words) as caught:
            read_secrets([bad])
        assert "hunter22" not in str(caught.value)


def test_the_command_that_the_head_runs_is_quoted_for_its_shell():
    request = request_for(["--preset", "cartpole", "--run-dir", "/a b/$(rm x)"], allow_open=True)
    assert request.entrypoint == (
        "python launch/job.py --preset cartpole --run-dir '/a b/$(rm x)' "
        "--control.allow-open-cluster"
    )
    assert request.name.startswith("-rm-x-")
