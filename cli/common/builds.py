"""What people are told of a build."""

from latentry.serving.entries.manifests import Build


def nearness(build: Build) -> str:
    """Return how far a build's samples are from what it is judged by, and how far they may be."""
    if build.gate and "worst_psnr_db" in build.gate.found:
        least = build.gate.bounds.get("worst_psnr_db")
        allowed = f" (allowed {least:g})" if least is not None else ""
        found = build.gate.found["worst_psnr_db"]
        return f"worst of {build.gate.samples:,} samples {found:.1f} dB{allowed}"
    tolerance = build.parity.tolerance
    allowed = f" (allowed {tolerance:.0e})" if tolerance is not None else ""
    return f"{max(build.parity.differences.values()):.1e}{allowed}"
