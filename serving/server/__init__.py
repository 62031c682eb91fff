"""The life of a server: started, watched, asked for its goldens, drained, started again."""
