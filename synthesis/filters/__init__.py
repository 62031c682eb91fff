"""What makes a sample be replaced by one of the shard's reserve."""
