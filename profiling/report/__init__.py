"""The report of a profile: JSON, CSV, HTML with pictures."""
