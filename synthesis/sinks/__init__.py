"""Files of samples: the same bytes for the same samples."""
