"""The vendor's load generator ``perf_analyzer``: find it, fetch it, run it."""
