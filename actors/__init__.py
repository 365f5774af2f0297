"""Acting: environments, tree search, language-model priors, env actors and the evaluator."""
