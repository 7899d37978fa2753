"""The model without a strategy."""

from decoding.strategy import Strategy


class Plain(Strategy):
    """Leave the logits z unchanged."""

    name = "plain"
    paper = "none"
    neutral = {}
