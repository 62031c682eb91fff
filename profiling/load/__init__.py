"""Load on a server, and what came back."""
