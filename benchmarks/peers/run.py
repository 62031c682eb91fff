"""Every peer on this machine, one after the other, under one load: the tables of docs/peers.md.

python benchmarks/peers/run.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.comparison import main

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # every server has been ended
