"""When a model is unsure, where nobody has said how many of its answers may be wrong."""

from dataclasses import replace

from regraft.bundle.bundle import Bundle

USUAL_ERROR = 0.05  # share of wrong answers


def usual_doubt(bundle: Bundle) -> Bundle:
    """Return a model that says when it is unsure.

    Args:
        bundle: The model.

    Returns:
        The model itself, where it was told how many of its answers may be wrong, or cannot promise anything; else one
        that is told 5 %, or the least that it can promise where that is more.
    """
    if bundle.max_error is not None:
        return bundle
    possible = [step[0] for step in bundle.manifest["thresholds"].get("max_error", []) if step[0] < 1]
    if not possible:
        return bundle
    return replace(bundle, max_error=max(USUAL_ERROR, min(possible)))
