"""Where a job's files go, and who holds its lock."""
