"""The table of a run in a terminal says what the report says."""

from eval.report.wording import MINUS
from eval.results import Column, Difference, Estimate
from eval.terminal import cell

F1 = Column(name="f1", title="F1", better="higher", percent=True, primary=True)


def test_the_adjusted_p_value_gives_the_stars() -> None:
    difference = Difference(value=-0.042, low=-0.06, high=-0.02, test="exchange", p=0.0001, p_holm=0.03)
    assert difference.chance == 0.03
    assert cell(Estimate(value=0.91), difference, F1) == f"91.0 [default]{MINUS}4.2*[/]"
    difference.p_holm = None
    assert cell(Estimate(value=0.91), difference, F1).endswith("4.2***[/]")


def test_a_number_without_a_value() -> None:
    assert cell(Estimate(value=None), None, F1) == "n/a"
