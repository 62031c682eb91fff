"""From what people hold and write down to NumPy."""
