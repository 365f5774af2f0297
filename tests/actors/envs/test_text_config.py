"""Settings of text worlds are refused by name without TextWorld being there."""

import pytest

from actors.envs.text_config import KINDS, TextConfig, parse_options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "chess"}, "env.text.kind must be one of coin_collector, .*; got 'chess'"),
        ({"options": ("size=3",)}, "'size=3' is not an option of coin_collector; .* level"),
        ({"options": ("level",)}, "'level' is not an option of coin_collector; write name=value"),
        ({"options": ("level=0",)}, "level must be a whole number from 1 to 300, got '0'"),
        ({"options": ("level=³",)}, "level must be a whole number from 1 to 300, got '³'"),
        ({"options": ("level=" + "9" * 5000,)}, "level must be a whole number from 1 to 300"),
        ({"options": "level=1"}, "must be a list, got the text 'level=1'"),
        ({"kind": "cooking", "options": ("go=2",)}, "go must be one of 1, 6, 9, 12; got '2'"),
        ({"kind": "cooking", "options": ("take=2",)}, "take=2 is more than recipe=1"),
        ({"kind": "cooking", "options": ("cook=yes",)}, "cook must be one of false, true"),
        ({"seeds": ()}, "env.text.seeds is empty"),
        ({"seeds": (-1,)}, "env.text.seeds must be a whole number from 0 to 2147483647, got -1"),
        ({"seeds": (True,)}, "env.text.seeds must be a whole number"),
        ({"seeds": (1, 1)}, "names a seed twice"),
        ({"max_tokens": 0}, "env.text.max_tokens must be a whole number from 8 to 8192, got 0"),
        ({"max_commands": 1}, "env.text.max_commands must be a whole number from 2"),
        ({"history": -1}, "env.text.history must be a whole number from 0 to 20, got -1"),
        ({"max_steps": 0}, "env.text.max_steps must be a whole number from 1"),
        ({"encoder": ""}, "env.text.encoder is empty"),
    ],
)
def test_bad_settings_name_field_value_and_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**settings)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_complete_and_given_options_replace_them(kind):
    defaults = parse_options(kind, ())
    assert set(defaults) == set(KINDS[kind])
    name = next(iter(KINDS[kind]))
    last = str(KINDS[kind][name][-1])
    assert str(parse_options(kind, (f"{name}={last}",))[name]) == last


def test_options_have_the_types_that_the_generator_takes():
    found = parse_options("cooking", ("recipe=3", "take=2", "go=6", "open=true", "split=none"))
    assert found["recipe"] == 3 and found["go"] == 6 and found["open"] is True
    assert found["cut"] is False and found["split"] is None
    assert parse_options("cooking", ("split=train",))["split"] == "train"
