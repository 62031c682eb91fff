"""Exit codes: 0 done, and these."""

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_TRY_LATER = 75
EXIT_INTERRUPTED = 130
