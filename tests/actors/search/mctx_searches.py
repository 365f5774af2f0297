"""Random searches by mctx, for test_gumbel; runs in an environment of its own.

    python mctx_searches.py problems.npz answers.npz

Model outputs depend on the path of actions alone, through a table of (parent's hash, action).
"""

import sys

import jax
import jax.numpy as jnp
import mctx
import numpy as np

jax.config.update("jax_enable_x64", True)


def main() -> None:
    problems, answers = np.load(sys.argv[1]), {}
    n_problems = int(problems["n_problems"])
    for i in range(n_problems):
        problem = {key.split("/")[1]: problems[key] for key in problems if key.startswith(f"{i}/")}
        output = search(**problem)
        answers[f"{i}/action"] = np.asarray(output.action)
        answers[f"{i}/policy"] = np.asarray(output.action_weights)
        answers[f"{i}/visits"] = np.asarray(output.search_tree.summary().visit_counts)
    np.savez(sys.argv[2], **answers)


def search(logits, value, legal, outputs, discount, n_simulations, max_considered):
    """One search; outputs [S, 2 + A] by state, state of child = (state * A + action + 1) % S."""
    n_actions = logits.shape[1]
    table = jnp.asarray(outputs)

    def recurrent_fn(params, key, action, state):
        following = (state * n_actions + action + 1) % len(table)
        row = table[following]
        step = mctx.RecurrentFnOutput(
            reward=row[:, 0],
            discount=jnp.full(len(row), discount),
            prior_logits=row[:, 2:],
            value=row[:, 1],
        )
        return step, following

    root = mctx.RootFnOutput(
        prior_logits=jnp.asarray(logits),
        value=jnp.asarray(value),
        embedding=jnp.zeros(len(logits), jnp.int64),
    )
    return mctx.gumbel_muzero_policy(
        params=(),
        rng_key=jax.random.PRNGKey(0),
        root=root,
        recurrent_fn=recurrent_fn,
        num_simulations=int(n_simulations),
        invalid_actions=jnp.asarray(~legal),
        max_num_considered_actions=int(max_considered),
        gumbel_scale=0.0,
    )


if __name__ == "__main__":
    main()
