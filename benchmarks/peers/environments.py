"""A virtual environment for each peer, under ``.peers/``."""

import subprocess
import sys
from pathlib import Path

from peers.catalogue import ROOT, Peer

HOME = ROOT / ".peers"


def bin_folder(peer: Peer) -> Path:
    """Return where the peer's programs are."""
    return HOME / peer.name / "bin"


def prepare(peer: Peer) -> None:
    """Make the peer's environment unless it is there as its requirements.txt says.

    Raises:
        CalledProcessError: pip did not deliver.
    """
    requirements = peer.folder / "requirements.txt"
    stamp = HOME / peer.name / "requirements.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return
    print(f"installing {peer.title}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME / peer.name)], check=True)
    pip = [str(bin_folder(peer) / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", str(requirements)], cwd=ROOT, check=True)
    stamp.write_text(requirements.read_text())


def versions(peer: Peer) -> dict[str, str]:
    """Return the versions of what the peer's requirements.txt names."""
    lines = (peer.folder / "requirements.txt").read_text().splitlines()
    pins = (line.partition("==") for line in lines if "==" in line)
    return {name: version for name, _, version in pins}
