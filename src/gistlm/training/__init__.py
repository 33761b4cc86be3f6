"""Training a gist adapter: data, objectives and the loop."""
