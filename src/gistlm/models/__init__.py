"""Models under gists: checkpoints, bases, adapters; knows no generation and no training."""
