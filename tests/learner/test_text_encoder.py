"""Texts to token ids and to latents: from scratch, and with real Hugging Face code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from learner.weights import load_weights, snapshot_weights
from learner.world_model import WorldModel, WorldModelConfig
from learner.world_model.text_tokens import HASHED, N_HASHED, make_tokenizer
from replay_service.segment import GameSpec

WORDS = ("you", "are", "in", "a", "room", "north", "south", "coin", ".")
CONFIG = WorldModelConfig(embed_dim=16, n_heads=2, mlp_hidden=16)


def text_spec(encoder: str, length: int = 12) -> GameSpec:
    n_tokens = make_tokenizer(encoder).n_tokens
    return GameSpec((length,), "int32", 3, n_tokens=n_tokens, text_encoder=encoder)


def read(texts: list[str], encoder: str, length: int = 12) -> torch.Tensor:
    tokenizer = make_tokenizer(encoder)
    return torch.from_numpy(np.stack([tokenizer.ids(text, length) for text in texts]))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory) -> str:
    """A Hugging Face encoder with random weights and a tokenizer of nine words."""
    folder = tmp_path_factory.mktemp("bert")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    ids = {word: index for index, word in enumerate((*special, *WORDS))}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@given(text=st.text(max_size=300), length=st.integers(8, 40))
def test_ids_fill_a_fixed_length_and_stay_in_range(text, length):
    ids = make_tokenizer(HASHED).ids(text, length)
    assert ids.shape == (length,) and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < N_HASHED
    n_words = int((ids > 0).sum())
    assert (ids[:n_words] > 0).all()  # 0 only at the end
    assert (
        np.array_equal(ids, make_tokenizer(HASHED).ids(text.lower(), length)) or not text.isascii()
    )


def test_ids_are_the_same_in_every_process():
    """Weights learned by one process are read by another: no seeded hash may be in it."""
    assert make_tokenizer(HASHED).ids("Take the coin!", 8).tolist() == [
        3445,
        4129,
        704,
        4955,
        0,
        0,
        0,
        0,
    ]


def test_words_and_their_order_both_show():
    torch.manual_seed(0)
    model = WorldModel(CONFIG, text_spec(HASHED)).eval()
    obs = read(["north of coin", "coin of north", "south of coin", "north of coin"], HASHED)
    latents = model.encode(obs)
    assert latents.shape == (4, 16)
    assert torch.equal(latents[0], latents[3])
    assert min(torch.dist(latents[0], latents[i]).item() for i in (1, 2)) > 1e-3


def test_what_fills_up_changes_nothing():
    torch.manual_seed(0)
    model = WorldModel(CONFIG, text_spec(HASHED)).eval()
    short, long = (read(["you are in a room"], HASHED, length) for length in (8, 30))
    # The word that ends the text sees zeros in both.
    torch.testing.assert_close(model.encode(short), model.encode(long))
    assert torch.isfinite(model.encode(torch.zeros(2, 12, dtype=torch.int32))).all()


def test_the_encoder_from_scratch_learns():
    torch.manual_seed(0)
    model = WorldModel(CONFIG, text_spec(HASHED))
    obs = read([f"you are in room {i} {'north' if i % 2 else 'south'}" for i in range(32)], HASHED)
    target = torch.arange(32) % 2
    head = torch.nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*model.encoder.parameters(), *head.parameters()], 0.02)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(model.encode(obs)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(model.encode(obs)).argmax(-1) == target).all()


def test_a_hugging_face_encoder_reads_its_own_tokens(bert_folder):
    obs = read(["you are in a room .", "coin"], bert_folder)
    assert obs[0, :6].tolist() == [1 + 4 + WORDS.index(w) for w in WORDS[:5] + WORDS[-1:]]
    torch.manual_seed(1)
    model = WorldModel(CONFIG, text_spec(bert_folder)).eval()
    states = BertModel.from_pretrained(bert_folder).eval()(
        input_ids=torch.tensor([[4 + WORDS.index("coin")]])
    )
    expected = model.encoder.project(states.last_hidden_state[:, 0])
    torch.testing.assert_close(model.encode(obs)[1:], expected, rtol=1e-4, atol=1e-5)


def test_frozen_it_is_neither_trained_nor_published(bert_folder):
    model = WorldModel(CONFIG, text_spec(bert_folder))
    assert all("project" in n for n, _ in model.named_parameters() if n.startswith("encoder"))
    model.encode(read(["coin"], bert_folder)).sum().backward()
    other = WorldModel(CONFIG, text_spec(bert_folder))
    load_weights(other, snapshot_weights(model, 1))
    obs = read(["you are in a room"], bert_folder)
    assert torch.equal(model.encode(obs), other.encode(obs))


def test_unfrozen_its_parameters_are_the_models(bert_folder):
    config = WorldModelConfig(embed_dim=16, n_heads=2, mlp_hidden=16, train_text_encoder=True)
    model = WorldModel(config, text_spec(bert_folder))
    (model.encode(read(["you are in"], bert_folder))[:, 0] ** 2).sum().backward()
    trained = dict(model.encoder.trained.named_parameters())
    gradient = trained["embeddings.word_embeddings.weight"].grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_a_text_longer_than_the_encoder_can_read_is_refused(bert_folder):
    with pytest.raises(ValueError, match=r"env.text.max_tokens 17 is more than the 16 tokens"):
        WorldModel(CONFIG, text_spec(bert_folder, length=17))


def test_an_unknown_encoder_is_named(tmp_path):
    missing = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"env.text.encoder .*nothing' can't be loaded: .*hashed"):
        make_tokenizer(missing)


def test_a_spec_of_texts_says_how_many_tokens_there_are():
    with pytest.raises(ValueError, match="obs_dtype int32 is for texts"):
        GameSpec((5,), "int32", 2)
    with pytest.raises(ValueError, match="obs_dtype int32 is for texts"):
        GameSpec((5,), "float32", 2, n_tokens=9)
