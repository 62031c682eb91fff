"""What runs inside Triton, and Triton itself: found, laid out, started."""
