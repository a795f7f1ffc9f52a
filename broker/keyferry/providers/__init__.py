"""Dialects: what providers of a kind have in common beyond the grants. Generators, as grants are; no I/O."""
