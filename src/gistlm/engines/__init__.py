"""Engines that run models: their interface (`base`) and its implementations, chosen by name."""
