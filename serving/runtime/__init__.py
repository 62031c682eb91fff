"""A served generator in this process: checked requests in, images out."""
