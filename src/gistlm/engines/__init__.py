"""What runs models: one seam (`base`) and the engines behind it, found by name."""
