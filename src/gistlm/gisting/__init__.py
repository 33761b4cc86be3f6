"""The method: mask, placement, kept tokens and caches; knows no files and no command line."""
