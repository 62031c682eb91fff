"""Stages: what a generator is made of, in the order it runs; one file for each operation."""
