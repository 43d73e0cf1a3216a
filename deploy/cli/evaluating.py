"""``lightship evaluate``: how good a model is at its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.cli.command import print_json
from deploy.cli.options import (
    FILE,
    json_option,
    require_harmless_models,
    threads_option,
    trust_model_option,
)

# Everything but click is imported inside the commands: --help answers at once.


@click.command("evaluate")
@click.argument("model", type=FILE)
@click.option("--data", type=FILE, required=True, help=".npz with x and y (RUN/test.npz is one).")
@click.option("--against", type=FILE, help="A second model to compare with, sample by sample.")
@trust_model_option
@click.option(
    "--task",
    type=click.Choice(["classification", "multi_label", "regression", "reconstruction"]),
    help="What a model of another maker is for.  [default: what the model says]",
)
@click.option("--metric", help="What decides, such as f1_macro.  [default: what the model says]")
@threads_option
@json_option
def evaluate_command(
    model: Path,
    data: Path,
    against: Path | None,
    trust_model: bool,
    task: Any,
    metric: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Measure how good MODEL is at its task, in the session that ships.

    \b
    lightship evaluate runs/demo/variants/int8/model.onnx \\
        --data runs/demo/test.npz --against runs/demo/variants/baseline/model.onnx
    lightship evaluate int8.onnx --data test.npz --metric f1_macro
    """
    from deploy.evalset import EvalSet
    from deploy.evaluate import answers_of, compare, evaluate, require_known_truth, verdict
    from deploy.goals import bounds, chosen_goal, metric_of, score
    from deploy.record import SessionOptions
    from deploy.session import open_model

    options = SessionOptions(threads=threads)
    require_harmless_models(trust_model, options, model, against)
    opened = open_model(model, options)
    goal = chosen_goal(opened.metadata.goal, task=task, metric=metric)
    samples = EvalSet.load(data, goal.task)
    answers = answers_of(opened, samples.x, goal)
    require_known_truth(answers, samples.y, goal, data=data, model=str(model))
    evaluation = evaluate(answers, samples.y, goal)
    comparison = None
    if against is not None:
        reference = answers_of(open_model(against, options), samples.x, goal)
        comparison = compare(answers, reference, samples.y, goal)
    if as_json:
        print_json({"goal": goal, "evaluation": evaluation, "comparison": comparison})
        return
    seen, title = evaluation.score, metric_of(goal).title
    width = max(len(title), 8)
    click.echo(
        f"{title:{width}}  {score(goal, seen.value)} {bounds(goal, seen.low, seen.high)} "
        f"on {evaluation.samples:,} samples"
    )
    if comparison is not None:
        told = [verdict(comparison, goal)]
        if comparison.mcnemar_p is not None:
            told.append(f"McNemar p = {comparison.mcnemar_p:.3g}")
        if comparison.agreement is not None:
            told.append(f"same answer on {comparison.agreement:.2%}")
        click.echo(f"{'against':{width}}  {against}: {', '.join(told)}")
