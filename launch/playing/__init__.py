"""Play that people watch or take part in: pictures with the search's opinion, terminal, keys."""
