"""Rows in, results out: every condition measured on every row, batch by batch; knows no terminal and no baseline.

References are scored under teacher forcing. The full-prompt model's greedy answers are made once; every other
condition is scored on them, and its own answers are compared with them and with the references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt
from torch import Tensor

from gistlm.data.rows import Row, read_rows
from gistlm.engines.base import Engine, Request, with_sampling
from gistlm.engines.batches import batches
from gistlm.engines.sampling import Sampling
from gistlm.errors import DataError
from gistlm.evaluation import describe, metrics
from gistlm.evaluation.baselines import BASELINES, Source
from gistlm.evaluation.conditions import FULL, EvalCondition, EvalConditions, check_baselines
from gistlm.evaluation.measurements import Measurements
from gistlm.evaluation.progress import OnProgress, Progress
from gistlm.evaluation.resume_log import ResumeLog
from gistlm.evaluation.words import LLMLINGUA2
from gistlm.options import Options

MAX_LOGITS = 1 << 26
"""Numbers in the largest table of log-probabilities that is kept for comparison (256 MiB)."""


class EvalConfig(Options):
    """What is measured, and how much of it."""

    ks: Annotated[
        tuple[PositiveInt, ...], Field(strict=False, min_length=1), AfterValidator(lambda ks: tuple(sorted(set(ks))))
    ] = (1, 2, 4, 8, 16)
    """Numbers of gist tokens; kept by size, each once."""
    baselines: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(check_baselines)] = tuple(BASELINES)
    """Names of `baselines.BASELINES`; kept each once."""
    limit: PositiveInt | None = None
    """Use the first rows only."""
    max_tokens: PositiveInt = 1024
    """Leave out rows with more tokens of prompt, input and output."""
    new_tokens: PositiveInt = 64
    """Most tokens of a generated answer."""
    generate: bool = True
    """Whether answers are generated, by every condition."""
    batch_size: PositiveInt = 16
    """Most rows that run together; there are fewer where they would have more than the engine's `batch_tokens`."""
    seed: NonNegativeInt = 0
    """Of the bootstrap and of the untrained gist tokens."""
    resamples: PositiveInt = 2000
    """Of the bootstrap."""
    classifier: str = LLMLINGUA2
    """The token classifier of the llmlingua2 baseline."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a file of rows."""

    results: dict[str, Any]
    """A `results.ResultFile` without "format", "version" and "run"."""
    rows: list[Row] = field(repr=False)
    """The rows that were measured, in the file's order."""
    answers: dict[str, list[str]] = field(repr=False)
    """Generated answers to those rows by condition's label; empty without generation."""


def evaluate(
    engine: Engine,
    data: str,
    config: EvalConfig,
    on_progress: OnProgress | None = None,
    resume_log: ResumeLog | None = None,
) -> Evaluation:
    """Measure every condition on a file of rows.

    resume_log: keeps every batch as soon as it is measured, and gives back those of an earlier run; its basis is
    `describe.basis(engine)`.

    Raises `DataError` for rows that cannot be used, `InputError` for an impossible k, and `MissingDependencyError`
    where answers are generated and rouge-score is missing.
    """
    checkpoint = engine.checkpoint
    for k in config.ks:
        checkpoint.placement.check_k(k)
    if config.generate:
        metrics.rouge_scorer()
    read = read_rows(data, limit=config.limit)
    rows = [row for row in read if _fits(engine, row, config)]
    if not rows:
        raise DataError(
            f"none of the {len(read)} rows of {data} fits: a row has at most {config.max_tokens:,} tokens (max_tokens) "
            f"and, with the longest gist and an answer of {config.new_tokens:,} tokens (new_tokens), at most the "
            f"{checkpoint.architecture.context:,} that the model has room for; raise the first or lower the second"
        )
    source = Source(checkpoint, [row.prompt for row in rows], config.classifier, config.seed)
    conditions = EvalConditions(engine, config.ks, config.baselines, source)
    measurements = measure(engine, rows, conditions, config, on_progress, resume_log)
    model = describe.model(checkpoint)
    lengths = int(measurements.output_tokens.sum()), int(measurements.answer_tokens.sum())
    results = {
        "model": model,
        "data": describe.data(data, rows, len(read) - len(rows), *lengths),
        "settings": describe.settings(config),
        "skipped": conditions.skipped,
        "conditions": measurements.conditions(conditions.all, model, config.seed, config.resamples),
        "rows": measurements.rows_as_values(),
        "examples": measurements.examples(),
    }
    return Evaluation(results, rows, measurements.answers)


def measure(
    engine: Engine,
    rows: Sequence[Row],
    conditions: EvalConditions,
    config: EvalConfig,
    on_progress: OnProgress | None = None,
    resume_log: ResumeLog | None = None,
) -> Measurements:
    """Every condition on every row, in batches of rows of like length."""
    resume_log = resume_log or ResumeLog(None, {})
    measurements = Measurements(
        rows, engine.checkpoint.prompts, [condition.label for condition in conditions.all], config.generate
    )
    by_length = sorted(range(len(rows)), key=measurements.length)
    units = len(conditions.all) * (3 if config.generate else 1)
    progress = Progress(len(rows) * units, on_progress)
    work = resume_log.name(
        config=config.model_dump(mode="json"),
        batch_tokens=engine.batch_tokens,
        skipped=list(conditions.skipped),
        rows=[asdict(row) for row in rows],
    )
    widths = [(measurements.length(place),) for place in by_length]
    for batch in batches(widths, config.batch_size, engine.batch_tokens):
        places = [by_length[at] for at in batch]
        resume_log.measured(
            f"{work} {batch[0]}",
            partial(measurements.put, places),
            partial(_measure_batch, engine, places, conditions, measurements, config, progress),
        )
        progress.reach((batch[-1] + 1) * units)
    measurements.compare_answers()
    return measurements


def _measure_batch(
    engine: Engine,
    places: Sequence[int],
    conditions: EvalConditions,
    measurements: Measurements,
    config: EvalConfig,
    step: Progress,
) -> dict[str, Any]:
    """Every condition on the rows at those places; what `Measurements.part` gives of them."""
    batch = [measurements.rows[place] for place in places]
    requests = conditions.requests([row.prompt for row in batch], [row.input for row in batch])
    for condition, asked in requests.items():
        measurements.held[condition.label][places] = [request.gist.k if request.gist else 0 for request in asked]
    outputs = [row.output for row in batch]
    ids = [*map(engine.checkpoint.prompts.output_ids, outputs)]
    for condition, row, sums in _score(engine, requests, outputs, ids, step):
        measurements.add(condition.label, places[row], sums)
    if config.generate:
        _generate(engine, requests, places, measurements, config, step)
    return measurements.part(places)


def _generate(
    engine: Engine,
    requests: dict[EvalCondition, list[Request]],
    places: Sequence[int],
    measurements: Measurements,
    config: EvalConfig,
    step: Progress,
) -> None:
    """Answers under every condition, and every condition's scores on the full-prompt model's answers."""
    answers, targets = list[str](), list[list[int]]()
    for condition, asked in requests.items():
        sampling = Sampling(max_new_tokens=config.new_tokens)
        completions = engine.complete(with_sampling(asked, sampling))
        for place, completion in zip(places, completions, strict=True):
            measurements.answers[condition.label][place] = completion.text
            if condition == FULL:
                cut = completion.finish_reason == "length"
                answers.append(completion.text.rstrip("\ufffd") if cut else completion.text)  # half a character
                ids = engine.checkpoint.prompts.output_ids(answers[-1])
                end = len(engine.checkpoint.prompts.output_end_ids)
                targets.append(ids[: len(ids) - end] if cut else ids)  # an answer that was cut has not ended
                measurements.answer_tokens[place] = len(targets[-1])
        step(len(asked))
    for condition, row, sums in _score(engine, requests, answers, targets, step):
        measurements.add(condition.label, places[row], {f"answer_{name}": sums[name] for name in ("kl", "agreement")})


def _score(
    engine: Engine,
    requests: dict[EvalCondition, list[Request]],
    outputs: Sequence[str],
    targets: Sequence[list[int]],
    step: Progress,
) -> Iterator[tuple[EvalCondition, int, dict[str, float]]]:
    """(condition, row, sums over the row's targets) under teacher forcing; a few rows' distributions at a time."""
    checkpoint = engine.checkpoint
    most = max(1, MAX_LOGITS // int(checkpoint.reader.config.get_text_config(decoder=True).vocab_size))
    for some in batches([(len(ids) + 1,) for ids in targets], len(targets), most):
        ids = [torch.tensor(targets[row], dtype=torch.long, device=checkpoint.reader.device) for row in some]
        texts = [outputs[row] for row in some]
        full = list(_distributions(engine, [requests[FULL][row] for row in some], texts, ids))
        for condition, asked in requests.items():
            mine = full if condition == FULL else _distributions(engine, [asked[row] for row in some], texts, ids)
            for row, teacher, student, wanted in zip(some, full, mine, ids, strict=True):
                yield condition, row, metrics.token_sums(teacher, student, wanted)
            step(len(some))


def _distributions(
    engine: Engine, requests: Sequence[Request], outputs: Sequence[str], targets: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Log-probabilities [tokens, vocabulary] at each row's targets [tokens], which begin its output."""
    for logits, wanted in zip(engine.logits(requests, outputs), targets, strict=True):
        yield metrics.log_probabilities(logits[: len(wanted)])


def _fits(engine: Engine, row: Row, config: EvalConfig) -> bool:
    """Whether a row is short enough for the options and, with its answer and the longest gist, for the model."""
    checkpoint = engine.checkpoint
    prompt, output = len(checkpoint.prompts.prompt_ids(row.prompt)), len(checkpoint.prompts.output_ids(row.output))
    rest = len(checkpoint.prompts.rest_ids(row.input))
    longest = max(output, config.new_tokens + 1 if config.generate else 0)
    room = checkpoint.architecture.context - checkpoint.placement.opening - max(config.ks) - 1
    return prompt + rest + output <= config.max_tokens and prompt + rest + longest <= room
