"""Training a gist adapter: options, passes, objectives and the loop."""
