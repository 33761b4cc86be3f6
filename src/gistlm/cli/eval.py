"""`gistlm eval`: a file of rows in, a table and a result file out; knows nothing of how it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gistlm.cli import options as opt
from gistlm.cli.outcome import say
from gistlm.cli.results import print_results
from gistlm.cli.show import duration
from gistlm.data.rows import check_source
from gistlm.errors import GistlmError, InputError
from gistlm.files import check_target

if TYPE_CHECKING:
    from gistlm.engines.base import Engine
    from gistlm.evaluation.resume_log import ResumeLog
    from gistlm.evaluation.runner import EvalConfig, Evaluation


class Judging(NamedTuple):
    """The endpoint that judges."""

    url: str
    model: str
    key_env: str | None


def eval(
    data: Annotated[
        str | None,
        typer.Option("--data", help="Rows of instruction, input and output, or chats: a .jsonl or .json file."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "--checkpoint",
            "-m",
            envvar="GISTLM_MODEL",
            help="Checkpoint: a name from `gistlm models`, a folder, or a hub id.",
        ),
    ] = opt.DEFAULT_MODEL,
    k: Annotated[str, typer.Option("--k", "-k", help="Numbers of gist tokens, with commas.")] = "1,2,4,8,16",
    json: Annotated[Path | None, typer.Option("--json", help="Write the results here, whole or not at all.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Use this number of rows, the first ones, and of probes of each kind.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Leave out rows with more tokens of prompt, input and output.")
    ] = 1024,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Maximum number of an answer's tokens.")] = 64,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Generate answers under every condition.")
    ] = True,
    baselines: Annotated[
        str, typer.Option("--baselines", help="Baselines of equal bytes, with commas; none for none.")
    ] = "truncation,tfidf,pooled,last,selected,untrained,llmlingua2",
    llmlingua2: Annotated[
        str | None, typer.Option("--llmlingua2", help="The classifier of that baseline: a folder or a hub id.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows that run together.")] = 16,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads; torch's own number by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap and of whatever is drawn.")] = 0,
    examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="Keep the first rows' texts and answers in the results.")
    ] = True,
    probe: Annotated[
        bool | None, typer.Option("--probe/--no-probe", help="Probe what is retained; on only without --data.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="URL", help="OpenAI-compatible endpoint that compares answers.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="The model that judges there.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option("--judge-key-env", help="Environment variable with the endpoint's key, if it has one.")
    ] = None,
    base: opt.Base = None, device: opt.Device = None, dtype: opt.Dtype = None, engine: opt.Engine = "transformers",
) -> None:  # fmt: skip
    """Measure how much of their prompts gists keep, beside both controls and baselines of equal bytes.

    Every row is answered under the full prompt, no prompt, a gist and each baseline at every k: likelihood of the
    reference, divergence from the full prompt's model, generated answers. Without --data only the retention
    probe runs. Two runs with one seed give the same results. With --json a run that was stopped goes on when the
    same command is given again.

    \b
    Example:
      gistlm eval --data rows.jsonl --k 1,4 --limit 100 --json results.json
      gistlm eval --data rows.jsonl --no-generate --baselines none
    """
    _check_usage(data, json, judge, judge_model, generate)
    ks = _numbers(k)
    options = opt.EngineOptions(engine, model, base, device, dtype)
    if known := options.preflight():
        known.placement.check_k(max(ks))
    if data is not None:
        check_source(data)
    begin = time.perf_counter()
    from gistlm.evaluation.runner import EvalConfig
    from gistlm.evaluation.words import LLMLINGUA2

    names = () if baselines.strip() == "none" else tuple(name.strip() for name in baselines.split(",") if name.strip())
    config = EvalConfig(
        ks=ks,
        baselines=names,
        limit=limit,
        max_tokens=max_tokens,
        new_tokens=new_tokens,
        generate=generate,
        batch_size=batch_size,
        seed=seed,
        classifier=llmlingua2 or LLMLINGUA2,
    )
    _use_threads(threads)
    loaded = options.load()
    judging = Judging(judge, judge_model, judge_key_env) if judge and judge_model else None
    with _resume_log(json, loaded) as resume_log:
        results = _measure(loaded, data, config, data is None if probe is None else probe, judging, resume_log)
        loaded.close()
        if not examples:
            results["examples"] = []
        _finish(results, json, time.perf_counter() - begin + resume_log.seconds, resume_log)


def _check_usage(
    data: str | None, json: Path | None, judge: str | None, judge_model: str | None, generate: bool
) -> None:
    if (judge is None) != (judge_model is None):
        raise typer.BadParameter("--judge and --judge-model go together: the endpoint and the model that judges there")
    if judge is not None and (data is None or not generate):
        raise typer.BadParameter("--judge compares generated answers: it needs --data, and no --no-generate")
    if json is not None:
        check_target(json, data)


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise InputError(f"--k takes numbers of gist tokens with commas between them, for example 1,4,16; got {text!r}")
    return tuple(map(int, words))


def _use_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"--threads must be 1 or more, got {threads}")
    import torch

    torch.set_num_threads(threads)


@contextmanager
def _resume_log(json: Path | None, engine: Engine) -> Iterator[ResumeLog]:
    """Beside the results' file, until that is written: what is measured meanwhile."""
    from gistlm.evaluation import describe
    from gistlm.evaluation.resume_log import ResumeLog

    resume_log = ResumeLog(None, {}) if json is None else ResumeLog(f"{json}.partial", describe.basis(engine))
    try:
        yield resume_log
    except KeyboardInterrupt:
        left = resume_log.when_stopped()
        raise KeyboardInterrupt(f"interrupted; {left}" if left else "interrupted") from None
    except Exception:
        if left := resume_log.when_stopped():
            say(left)
        raise
    finally:
        resume_log.close()


def _measure(
    engine: Engine,
    data: str | None,
    config: EvalConfig,
    probe: bool,
    judging: Judging | None,
    resume_log: ResumeLog,
) -> dict[str, Any]:
    """Everything that was asked for, as a `results.ResultFile` without "run"."""
    from gistlm.evaluation import describe
    from gistlm.evaluation.results import FORMAT, VERSION
    from gistlm.evaluation.runner import evaluate

    results: dict[str, Any] = {"format": FORMAT, "version": VERSION, "retention": None, "judge": None}
    if data is None:
        results |= describe.nothing(engine.checkpoint, config)
    else:
        if judging is not None:
            _try_judge(judging, config.seed)
        with _progress("measuring rows") as report:
            measured = evaluate(engine, data, config, report, resume_log)
        results |= measured.results
        if judging is not None:
            try:
                results["judge"] = _judge(measured, judging, config.seed)
            except GistlmError as error:  # what was measured is not to be lost
                results["skipped"]["judge"] = str(error)
    if probe:
        from gistlm.evaluation import retention

        with _progress("probing retention") as report:
            results["retention"] = retention.measure(engine, config.ks, config.seed, config.limit, report, resume_log)
    return results


def _finish(results: dict[str, Any], path: Path | None, seconds: float, resume_log: ResumeLog) -> None:
    """Show the results, and write them where that was asked for."""
    import sys

    from gistlm.evaluation import describe
    from gistlm.evaluation.results import ResultFile, round_floats, write_results

    results["run"] = describe.run(sys.argv[1:], seconds)
    results = {name: round_floats(results[name]) for name in ResultFile.model_fields}
    try:
        print_results(results)  # first: neither a full disk nor a closed pipe takes all that was measured
    finally:
        if path is not None:
            write_results(path, results)
            resume_log.remove()
    print(f"measured in {duration(seconds)}" + (f"; the results are in {path}" if path is not None else ""))


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where that is a terminal, moved by (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _judge(measured: Evaluation, judging: Judging, seed: int) -> list[dict[str, Any]]:
    """Gists' answers, and those without a prompt, against the full prompt's: "judge" of the results."""
    from gistlm.evaluation import judge

    verdicts = []
    for name in ("none", *(label for label in measured.answers if label.startswith("gist@"))):
        answers = zip(measured.rows, measured.answers[name], measured.answers["full"], strict=True)
        pairs = [judge.AnswerPair(row.prompt, row.input, mine, full) for row, mine, full in answers]
        with _progress(f"judging {name}") as report:
            figures = judge.compare(pairs, judging.url, judging.model, judging.key_env, seed, report)
        verdicts.append({"condition": name, "against": "full", **figures})
    return verdicts


def _try_judge(judging: Judging, seed: int) -> None:
    """Let the judge compare one pair, so that a wrong address or key is found before anything is measured."""
    from gistlm.evaluation import judge

    judge.compare([judge.AnswerPair("Say yes.", "", "Yes.", "No.")], judging.url, judging.model, judging.key_env, seed)
