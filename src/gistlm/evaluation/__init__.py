"""How much of a prompt its gist keeps, measured: conditions, baselines, metrics, probe and judge."""
