"""LightZero 0.2.0's side of search.py and search_exactness.py; runs in LightZero's environment.

Started by `lightzero.py`, never by hand. Reads one command a line from standard input and answers
each with one line of JSON. LightZero's own classes are called as its policy calls them when it
collects; nothing of them is stored here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from lightzero_deviation import Recorder, deviations

# LightZero prints while it is imported and built: answers keep the real standard output.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# ruff: noqa: E402
from lzero.mcts.tree_search.mcts_ctree import UniZeroMCTSCtree
from lzero.model.unizero_model import UniZeroModel
from lzero.model.unizero_world_models import world_model as lightzero_world_model
from lzero.policy.scaling_transform import InverseScalarTransform
from lzero.policy.unizero import UniZeroPolicy

WINDOW_STEPS = 4  # of its context of 8 tokens 7 are used: 4 observations, 3 actions


class CacheClock:
    """Time inside LightZero's cache functions; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def wrap(self, owner: object, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += perf_counter() - start

        setattr(owner, name, timed)


def make_model(sizes: dict[str, int], device: str) -> tuple[UniZeroModel, EasyDict]:
    """UniZero as its default configuration has it, but for the sizes and vector observations."""
    config = EasyDict(UniZeroPolicy.config)
    config.device = device
    config.num_simulations = sizes["n_simulations"]
    config.discount_factor = sizes["discount"]
    world = config.model.world_model_cfg
    world.update(
        obs_type="vector",
        device=device,
        action_space_size=sizes["n_actions"],
        embed_dim=sizes["embed_dim"],
        num_layers=sizes["n_layers"],
        num_heads=sizes["n_heads"],
        support_size=2 * config.model.support_scale + 1,
        env_num=sizes["n_roots"],
        context_length=2 * WINDOW_STEPS,
        num_simulations=sizes["n_simulations"],
    )
    model = UniZeroModel(
        observation_shape=sizes["n_inputs"],
        action_space_size=sizes["n_actions"],
        norm_type="LN",
        world_model_cfg=world,
    )
    return model.to(device).eval(), config


def copy_weights(model: UniZeroModel, path: str) -> None:
    """Take over every tensor that both models have; the rest keeps its own random values."""
    ours, world = np.load(path), model.world_model
    targets = {"action_in.weight": world.act_embedding_table.weight}
    norms_and_linears = {"transformer.norm_out": world.transformer.ln_f}
    for i, block in enumerate(world.transformer.blocks):
        prefix = f"transformer.blocks.{i}"
        norms_and_linears |= {
            f"{prefix}.norm_attention": block.ln1,
            f"{prefix}.attention_out": block.attn.proj,
            f"{prefix}.norm_mlp": block.ln2,
            f"{prefix}.mlp_in": block.mlp[0],
            f"{prefix}.mlp_out": block.mlp[2],
        }
    heads = ("policy", "value", "reward", "latent")
    theirs = (world.head_policy, world.head_value, world.head_rewards, world.head_observations)
    for name, head in zip(heads, theirs, strict=True):
        for layer in (0, 2):
            norms_and_linears[f"{name}_head.{layer}"] = head.head_module[layer]
    for name, module in norms_and_linears.items():
        targets |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(torch.from_numpy(ours[name]))
        for i, block in enumerate(world.transformer.blocks):
            parts = [block.attn.query, block.attn.key, block.attn.value]
            for kind in ("weight", "bias"):
                split = np.split(ours[f"transformer.blocks.{i}.qkv.{kind}"], 3)
                for part, array in zip(parts, split, strict=True):
                    getattr(part, kind).copy_(torch.from_numpy(array))
        # Its encoder ends in zeros, so that all observations would look the same.
        for module in model.representation_network.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(module.weight)
    world.precompute_pos_emb_diff_kv()  # as after every weight load


def lay_out_by_columns(model: torch.nn.Module) -> None:
    """Keep matrices column by column, with the values they have."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


class Play:
    """B episodes played side by side, step after step, the most visited action each time."""

    def __init__(self, sizes: dict[str, int], weights: str, device: str, same_layout: bool) -> None:
        torch.manual_seed(0)
        self.sizes, self.device = sizes, device
        self.model, config = make_model(sizes, device)
        copy_weights(self.model, weights)
        if same_layout:
            lay_out_by_columns(self.model)
        self.search = UniZeroMCTSCtree(config)
        self.decode = InverseScalarTransform(
            config.model.support_scale, config.device, config.model.categorical_distribution
        )
        self.rng = np.random.default_rng(0)
        self.n_steps = 0
        self.obs: list[torch.Tensor] = []
        self.actions: list[list[int]] = []
        self.recorder: Recorder | None = None
        self.latents: list[torch.Tensor] = []
        self.clock = CacheClock()
        for name in (
            "retrieve_or_generate_kvcache",
            "trim_and_pad_kv_cache",
            "update_cache_context",
            "custom_copy_kv_cache_to_shared_wm",
        ):
            self.clock.wrap(self.model.world_model, name)
        self.clock.wrap(lightzero_world_model, "hash_state")

    def _draw(self) -> torch.Tensor:
        shape = (self.sizes["n_roots"], self.sizes["n_inputs"])
        return torch.from_numpy(self.rng.normal(size=shape).astype(np.float32)).to(self.device)

    @torch.no_grad()
    def infer_root(self) -> Any:
        """Append one real step and evaluate it."""
        n_roots = self.sizes["n_roots"]
        self.obs.append(self._draw())
        last = self.obs[-2] if self.n_steps else self.obs[-1]
        action = self.actions[-1] if self.n_steps else [-1] * n_roots
        timestep = np.full(n_roots, self.n_steps)
        output = self.model.initial_inference(last, action, self.obs[-1], timestep)
        self.n_steps += 1
        if self.recorder is not None:
            self.latents.append(output.latent_state.clone())
            self.recorder.start(output, self.latents, self.actions)
        return output

    def step(self) -> dict[str, float]:
        """One search: seconds in all and in cache functions."""
        n_roots = self.sizes["n_roots"]
        before, start = self.clock.seconds, perf_counter()
        output = self.infer_root()
        with torch.no_grad():
            latents = output.latent_state.cpu().numpy()
            logits = output.policy_logits.cpu().numpy().tolist()
            self.decode(output.value).cpu().numpy()
            legal = [list(range(self.sizes["n_actions"]))] * n_roots
            roots = UniZeroMCTSCtree.roots(n_roots, legal)
            to_play = [-1] * n_roots
            roots.prepare_no_noise(output.reward, logits, to_play)
            timestep = np.full(n_roots, self.n_steps - 1)
            self.search.search(roots, self.model, latents, to_play, timestep)
            visits = roots.get_distributions()
            roots.get_values()
        seconds = perf_counter() - start
        self.actions.append([int(np.argmax(v)) for v in visits])
        world = self.model.world_model
        return {
            "seconds": seconds,
            "cache_seconds": self.clock.seconds - before,
            "entries": len(world.past_kv_cache_recurrent_infer),
        }

    def memory(self) -> dict[str, float]:
        """Bytes of one stored entry and of everything the pools hold now."""

        def n_bytes(entry: Any) -> int:
            caches = [c for kv in entry._keys_values for c in (kv._k_cache, kv._v_cache)]
            return sum(c._cache.untyped_storage().nbytes() for c in caches)

        world = self.model.world_model
        init = [e for pool in world.shared_pool_init_infer for e in pool if e is not None]
        pools = {
            "init": init,
            "recurrent": [e for e in world.shared_pool_recur_infer if e is not None],
            "working": [e for e in world.shared_pool_wm if e is not None],
        }
        sizes = {name: sum(map(n_bytes, entries)) for name, entries in pools.items()}
        return {"node_bytes": n_bytes(pools["recurrent"][0]), **sizes}

    def deviation(self) -> dict[str, dict[str, list[float]]]:
        """Cached against uncached after one more real step, of its roots and their trees.

        For each, (largest, mean) of logits and value. The next real action is random.
        """
        if self.recorder is None:
            self.recorder = Recorder(self.model, WINDOW_STEPS)
        recorder, world = self.recorder, self.model.world_model
        self.step()
        self.actions[-1] = self.rng.integers(
            self.sizes["n_actions"], size=self.sizes["n_roots"]
        ).tolist()
        return {
            "root": deviations(world, self.decode, recorder.roots),
            "node": deviations(world, self.decode, recorder.nodes),
        }


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["core"] is not None:
        os.sched_setaffinity(0, {settings["core"]})
    torch.set_num_threads(1)
    play = Play(settings["sizes"], settings["weights"], settings["device"], settings["same_layout"])
    commands = {"step": play.step, "memory": play.memory, "deviation": play.deviation}
    for line in sys.stdin:
        ANSWERS.write(json.dumps(commands[line.strip()]()) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
