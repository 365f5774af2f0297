"""Random searches by LightZero's C++ tree, for test_lightzero; runs in an environment of its own.

    python lightzero_searches.py problems.npz answers.npz

Of the package only the compiled tree is loaded; the rest takes half a minute to import.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import numpy as np

NAME = "lzero.mcts.ctree.ctree_muzero.mz_tree"
PB_C_BASE, PB_C_INIT, VALUE_DELTA_MAX = 19652, 1.25, 0.01


def load_tree():
    folder = Path(sys.prefix) / "lib"
    path = next(folder.glob("python*/site-packages/lzero/mcts/ctree/ctree_muzero/mz_tree.*.so"))
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(NAME, path, loader=loader)
    )
    sys.modules[NAME] = module
    loader.exec_module(module)
    return module


def search(module, root_logits, outputs, discount):
    """Visits [A] of one root; outputs [N, 2 + A] in the order of the simulations."""
    roots = module.Roots(1, [list(range(len(root_logits)))])
    roots.prepare_no_noise([0.0], [root_logits.tolist()], [-1])
    bounds = module.MinMaxStatsList(1)
    bounds.set_delta(VALUE_DELTA_MAX)
    for index, output in enumerate(outputs):
        results = module.ResultsWrapper(num=1)
        module.batch_traverse(roots, PB_C_BASE, PB_C_INIT, discount, bounds, results, [-1])
        module.batch_backpropagate(
            index + 1,
            discount,
            [float(output[0])],
            [float(output[1])],
            [output[2:].tolist()],
            bounds,
            results,
            [-1],
        )
    return roots.get_distributions()[0]


def main() -> None:
    problems, module, answers = np.load(sys.argv[1]), load_tree(), {}
    for i in range(int(problems["n_problems"])):
        answers[str(i)] = search(
            module,
            problems[f"{i}/root_logits"],
            problems[f"{i}/outputs"],
            float(problems["discount"]),
        )
    np.savez(sys.argv[2], **answers)


if __name__ == "__main__":
    main()
