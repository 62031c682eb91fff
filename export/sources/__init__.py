"""Where a generator to be exported comes from."""
