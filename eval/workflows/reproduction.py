"""`eval reproduce`: the options of a run with the setting of a published table."""

from __future__ import annotations

from eval.benchmarks.registry import load_task
from eval.core.task import TaskOptions
from eval.errors import EvaluationError
from eval.hub.data_folder import open_data_folder
from eval.published.settings import TableSettings
from eval.runs.preparation import RunOptions
from eval.runs.request import SamplingSettings
from eval.runs.stack_spec import parse_spec
from eval.workflows.run_workflow import parse_seeds


def build_run_options(
    settings: TableSettings, data: str, model: str | None, limit: int | None, *, controls: bool
) -> tuple[RunOptions, dict[str, str]]:
    """Build the options of a run.

    Args:
        settings: The setting of the table.
        data: `embedded`, or the data folder.
        model: Name of the model. None is the only one of the server.
        limit: Number of questions of every scope. None is that of the table.
        controls: Add matched controls.

    Returns:
        The options, and the name of each row of the table with the label of its strategy.

    Raises:
        EvaluationError: The task of the table needs a judge.
    """
    specs = {row: parse_spec(text) for row, text in settings.strategies.items()}
    options = TaskOptions(
        suffix=settings.suffix, prompt=settings.prompt, parser=settings.parser, variant=settings.variant
    )
    task = load_task(settings.task, open_data_folder(data, settings.task), options)
    if task.needs_judge:
        raise EvaluationError(f"{settings.title}: tables of {settings.task} need a judge. Use `run {settings.task}`.")
    run_options = RunOptions(
        task=settings.task,
        data=data,
        model=model,
        specs=list(specs.values()),
        controls=controls,
        sampling=SamplingSettings(
            temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens
        ),
        seeds=parse_seeds(settings.seeds),
        limit=limit or settings.limit,
        options=options,
        yes_scores=task.is_yes_no,
    )
    return run_options, {row: spec.label for row, spec in specs.items()}
