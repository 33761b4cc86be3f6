"""gistlm: compress prompts into a few gist tokens (Mu, Li, Goodman 2023). Public names; loads no torch."""
