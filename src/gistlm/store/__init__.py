"""Where gists are kept: one seam (`base`) and the stores behind it, found by the form of their location."""
