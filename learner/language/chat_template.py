"""The text around a question, taken from a model's own chat template, without transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SYSTEM_MARK = "\x01system\x01"
_USER_MARK = "\x01user\x01"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """`head + question + tail` is the exact text up to where the model answers.

    head: everything before the question, the instructions included; the same for every state.
    tail: ends the question and opens the model's answer.
    end:  the token that ends the model's answer.
    """

    head: str
    tail: str
    end: str

    @classmethod
    def load(cls, model_folder: Path, instructions: str) -> ChatTemplate:
        """Reads the template of `model_folder`; a base model without one gets plain text.

        Raises ValueError for a template that does not show the question verbatim.
        """
        settings = _read_json(model_folder / "tokenizer_config.json")
        source = _template_source(model_folder, settings)
        end = _token_text(settings.get("eos_token"))
        if source is None:
            return cls(f"{instructions}\n\n", "\nAnswer:\n", end)
        text = _render(source, settings)
        if text.count(_USER_MARK) != 1 or text.count(_SYSTEM_MARK) != 1:
            raise ValueError(
                f"prior.model {model_folder}: its chat template does not show a message verbatim; "
                "use an instruct model with an ordinary chat template"
            )
        head, _, tail = text.replace(_SYSTEM_MARK, instructions).partition(_USER_MARK)
        return cls(head, tail, end)


def _template_source(folder: Path, settings: dict[str, object]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates; "default" is for conversation
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _render(source: str, settings: dict[str, object]) -> str:
    """The conversation with marks for its two variable parts."""
    # Trimming as in transformers, or the prompts would differ from those the model was tuned on.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_template_error
    template = environment.from_string(source)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens = {name: _token_text(settings.get(name)) for name in names}

    def render(messages: list[dict[str, str]]) -> str:
        return template.render(
            messages=messages, add_generation_prompt=True, enable_thinking=False, **tokens
        )

    user = {"role": "user", "content": _USER_MARK}
    try:
        text = render([{"role": "system", "content": _SYSTEM_MARK}, user])
        if _SYSTEM_MARK in text:
            return text
    except TemplateError:
        pass  # some templates know no system role
    return render([{"role": "user", "content": f"{_SYSTEM_MARK}\n\n{_USER_MARK}"}])


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


def _token_text(token: object) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
