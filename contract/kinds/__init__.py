"""Kinds: what a generator's inputs and outputs may be; one file each, with all that it knows."""
