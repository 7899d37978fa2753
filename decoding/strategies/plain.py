"""The model as it is."""

from decoding.strategy import Strategy


class Plain(Strategy):
    """No mitigation: z is left alone."""

    name = "plain"
    paper = "none"
