"""The formula, in a file of its own: training needs it, but not `evaluate`, whose import takes a second."""


def share_of(num_correct: float, num_tokens: float) -> float:
    """The accuracy over all rows together."""
    return float(num_correct / num_tokens) if num_tokens else float("nan")
