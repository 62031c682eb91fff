"""Where the pictures come from that a job gives to its model."""
