"""How many requests a second a latency target allows."""
