"""What an export has to prove before it is published."""
