"""The offline default: a tiny Qwen2 with a tokenizer trained on this project's own prompts.

Its weights are random until the language learner tunes them; it makes the whole system run, and
its tests, where nothing can be downloaded. About 0.4 M parameters, 2 MB, built in seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from learner.language.prompt import INSTRUCTIONS, question_text

CACHE_FOLDER = Path(".cache") / "warpzone"  # below the home directory
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class TinyRecipe:
    """Everything the tiny model is made from; equal recipes give equal files."""

    seed: int = 0  # of the weights and of the corpus
    vocab_size: int = 1024  # largest tokenizer; merges beyond the 256 bytes
    hidden_size: int = 128  # width; vLLM's CPU attention takes heads of 32 or 64, not 16
    head_dim: int = 64
    n_layers: int = 2
    n_corpus_lines: int = 3000
    weight_scale: float = 1.0  # above 1: sharper random answers, which tests can tell apart
    tie_embeddings: bool = True  # as Qwen2.5-0.5B

    def fingerprint(self) -> str:
        """Ten hex digits that name the recipe."""
        lines = list(islice(corpus(self), 50))  # enough to notice any change of the corpus
        parts = [asdict(self), CHAT_TEMPLATE, INSTRUCTIONS, lines]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def ensure_tiny_llm(folder: Path | None = None, recipe: TinyRecipe | None = None) -> Path:
    """The folder of the tiny model, built if it is not there; safe to call from many processes.

    The default folder is ~/.cache/warpzone/tiny-llm-<recipe>. A folder that exists is used as it
    is: it gets its name only when it is complete.
    """
    recipe = recipe or TinyRecipe()
    folder = folder or Path.home() / CACHE_FOLDER / f"tiny-llm-{recipe.fingerprint()}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build_tiny_llm(work, recipe)
        work.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def build_tiny_llm(folder: Path, recipe: TinyRecipe) -> None:
    """Writes model (float32 safetensors) and tokenizer into the existing `folder`."""
    # Imported here: env actors ask for the folder's name at start and must stay small.
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    # Words are cut as Qwen2 cuts them: transformers does so whatever tokenizer.json says.
    qwen = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = qwen.normalizer
    bpe.pre_tokenizer = qwen.pre_tokenizer
    bpe.decoder = qwen.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(recipe), trainer)
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=2 * recipe.hidden_size,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.hidden_size // recipe.head_dim,
        num_key_value_heads=1,
        head_dim=recipe.head_dim,
        max_position_embeddings=2048,
        tie_word_embeddings=recipe.tie_embeddings,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Qwen2ForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(recipe.weight_scale)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def corpus(recipe: TinyRecipe) -> Iterator[str]:
    """Prompts like those of a run: Mario's state lines, text-game sentences, labelled options."""
    rng = np.random.default_rng(recipe.seed)
    labels = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    for line in range(recipe.n_corpus_lines):
        if line % 10 == 0:
            yield INSTRUCTIONS  # often enough for its words to become single tokens
        state = mario_line(rng) if rng.random() < 0.8 else _text_game_line(rng)
        picked = rng.permutation(_OPTIONS)[: rng.integers(4, 13)]
        yield question_text(state, list(zip(labels, picked, strict=False)))


_OPTIONS = (
    "do nothing",
    "walk right",
    "walk right and jump",
    "run right",
    "run right and jump",
    "jump",
    "walk left",
    "walk left and jump",
    "run left",
    "run left and jump",
    "duck",
    "climb up",
    "go north",
    "go south",
    "go east",
    "go west",
    "take the key",
    "open the door",
    "look around",
)
_ENEMIES = ("goomba", "koopa", "red koopa", "piranha plant", "hammer brother", "bullet", "bowser")


def mario_line(rng: np.random.Generator) -> str:
    """One made-up state line in the form of actors/envs/mario_text.py."""
    motion = rng.choice(["in the air", "on ground"])
    power = rng.choice(["small", "big", "fire"])
    height, speed = rng.integers(0, 9), f"{rng.integers(-3, 4):+d},{rng.integers(-5, 6):+d}"
    parts = [
        f"world {rng.integers(1, 9)}-{rng.integers(1, 5)} time {20 * rng.integers(0, 21)}",
        f"Mario {power} tile {rng.integers(0, 215)} {motion} height {height} speed {speed}",
    ]
    if rng.random() < 0.3:
        parts.append(f"pit {rng.integers(0, 13)} ahead width {rng.integers(1, 6)}")
    if rng.random() < 0.5:
        kind = rng.choice(["pipe", "wall"])
        parts.append(f"{kind} {rng.integers(1, 13)} ahead height {rng.integers(1, 6)}")
    if rng.random() < 0.4:
        parts.append(f"?block {rng.integers(0, 13)} ahead {rng.integers(-2, 8)} up")
    if rng.random() < 0.05:
        parts.append(f"flag pole {rng.integers(0, 13)} ahead")
    for _ in range(rng.integers(0, 4)):
        ahead, above = rng.integers(-8, 25) / 2, rng.integers(-10, 11) / 2
        moving = rng.choice(["", " moving left", " moving right"])
        parts.append(f"{rng.choice(_ENEMIES)} {ahead:+.1f},{above:+.1f}{moving}")
    return "; ".join(parts) + "."


def _text_game_line(rng: np.random.Generator) -> str:
    room = rng.choice(["kitchen", "bedroom", "cellar", "garden", "corridor", "attic"])
    thing = rng.choice(["key", "lamp", "coin", "knife", "apple", "door", "chest"])
    way = rng.choice(["north", "south", "east", "west"])
    return f"You are in the {room}. You see a {thing}. There is an exit to the {way}."
