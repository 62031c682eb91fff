"""Entries of the model repository: what they hold, how they are written, read and proved whole."""
