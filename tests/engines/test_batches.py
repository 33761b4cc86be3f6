"""How rows are split into batches, by rows and by tokens, and that no result depends on it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_text, tiny_checkpoint
from torch import Tensor

from gistlm.engines import transformers as engine
from gistlm.engines.base import Request, with_sampling
from gistlm.engines.batches import BATCH_TOKENS, batches, within_memory
from gistlm.engines.layout import Prepared, Row
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import InputError, PromptTooLongError
from gistlm.evaluation import runner
from gistlm.evaluation.results import label
from gistlm.evaluation.runner import EvalConfig, evaluate

KINDS = ["llama", "mistral", "gpt2", "t5"]
BOUNDS = [1, 60, 200, BATCH_TOKENS]
widths = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=20)


def padded(rows: Sequence[Sequence[int]]) -> int:
    """Tokens of a batch with its padding."""
    return len(rows) * sum(map(max, zip(*rows, strict=True)))


@given(rows=widths, most=st.integers(1, 8), tokens=st.integers(1, 100))
def test_batches_hold_every_row_once_in_order_within_both_bounds(
    rows: list[tuple[int, int]], most: int, tokens: int
) -> None:
    made = list(batches(rows, most, tokens))
    assert [place for batch in made for place in batch] == list(range(len(rows)))
    for batch in made:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or padded([rows[place] for place in batch]) <= tokens
    for one, other in pairwise(made):  # and none could have taken the next row too
        assert len(one) == most or padded([rows[place] for place in (*one, other[0])]) > tokens


@cache
def model(kind: str) -> GistModel:
    return GistModel(tiny_checkpoint(kind))


@cache
def prompts() -> list[str]:
    generator = torch.Generator().manual_seed(1)
    return [random_text(generator, length) for length in (5, 170, 12, 90, 60, 3, 31)]


@cache
def requests(kind: str) -> list[Request]:
    """Gists, full prompts and neither, of several lengths."""
    gists = model(kind).compress(prompts(), 6)
    made = [Request(f"go on {'and on ' * (place % 3)}", gist) for place, gist in enumerate(gists)]
    return [*made[:3], Request("hm", prompt=prompts()[1]), *made[3:], Request("why?"), Request("a", prompt="b")]


@cache
def outputs() -> list[str]:
    return ["an answer", "x", "a longer answer than that", "y z", "no", "yes and no", "q", "so it is", "end"] * 2


def results(kind: str, bound: int) -> dict[str, Any]:
    """Everything that runs in batches, under a bound on their tokens."""
    loaded, asked = model(kind), requests(kind)
    loaded.batch_tokens = bound
    some = outputs()[: len(asked)]
    inputs, gists, full = zip(*((each.input, each.gist, each.prompt) for each in asked), strict=True)
    try:
        return {
            "gists": [tensor for gist in loaded.compress(prompts(), 5) for tensor in (*gist.keys, *gist.values)],
            "answers": loaded.complete(with_sampling(asked, Sampling(max_new_tokens=6))),
            "logits": list(loaded.logits(asked, some)),
            "scores": loaded.score(list(inputs), some, list(gists), prompts=list(full)),
        }
    finally:
        loaded.batch_tokens = BATCH_TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_no_result_depends_on_the_tokens_that_run_together(kind: str) -> None:
    whole = results(kind, 1 << 30)
    for bound in BOUNDS:
        found = results(kind, bound)
        assert found["answers"] == whole["answers"]
        for name in ("gists", "logits", "scores"):
            for one, other in zip(found[name], whole[name], strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_has_more_tokens_than_allowed_unless_it_is_one_row(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model(kind)
    seen: list[tuple[int, int]] = []
    prepare, compress = loaded._layout.prepare, engine.compress

    def counted(rows: Sequence[Row]) -> Prepared:
        made = prepare(rows)
        decoded = max(len(row.output) for row in rows) if made.states is not None or kind == "t5" else 0
        seen.append((len(rows), len(rows) * (made.parts.shape[1] + decoded)))
        return made

    def counted_prompts(checkpoint: Any, texts: Sequence[str], k: int) -> Any:
        seen.append((len(texts), len(texts) * (k + max(map(loaded.count_tokens, texts)))))
        return compress(checkpoint, texts, k)

    requests(kind)
    monkeypatch.setattr(loaded._layout, "prepare", counted)
    monkeypatch.setattr(engine, "compress", counted_prompts)
    sizes = set()
    for bound in (60, 200, 500):
        seen.clear()
        results(kind, bound)
        assert all(rows == 1 or tokens <= bound for rows, tokens in seen), seen
        sizes |= {rows for rows, _ in seen}
    assert len(sizes) > 2


def test_a_single_row_that_is_longer_than_the_bound_runs_alone() -> None:
    loaded = GistModel(tiny_checkpoint(), batch_tokens=10)
    gists = loaded.compress(["a", prompts()[1], "b"], 2)
    assert [gist.provenance.prompt_tokens for gist in gists] == [
        loaded.count_tokens(text) for text in ("a", prompts()[1], "b")
    ]
    assert loaded.batch_tokens == 10 and loaded.batch_size == 32


def test_a_mistake_in_any_row_is_found_before_the_first_batch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = GistModel(tiny_checkpoint(), batch_size=1)

    def runs(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a batch ran")

    monkeypatch.setattr(loaded, "_generate", runs)
    monkeypatch.setattr(loaded._layout, "output_logits", runs)
    asked = [Request("hm"), Request("x " * 400)]
    with pytest.raises(PromptTooLongError, match="room for its answer"):
        loaded.complete(with_sampling(asked, Sampling(max_new_tokens=6)))
    with pytest.raises(PromptTooLongError, match="room for its answer"):
        loaded.score(["hm", "x " * 400], "y")
    with pytest.raises(InputError, match="the prompt is empty"):
        loaded.generate(["hm", "hm"], prompts=["a", " "])
    for k in ("3", 0, 17):
        with pytest.raises(InputError, match="k is the number of gist tokens"):
            loaded.compress(["a", "b"], k)  # type: ignore[call-overload]


def compress_in_little_memory() -> None:
    """What a process of its own does: a prompt for whose attention 4 GB are not enough."""
    import resource

    loaded = GistModel(tiny_checkpoint("t5"))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (4 << 30), resource.RLIM_INFINITY))
    for attempt in (loaded.compress, loaded.generate, lambda text: loaded.score(text, "x")):
        try:
            attempt("x" * 100_000)
        except InputError as error:
            print(error)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a bound on a process' memory")
def test_an_encoders_text_that_memory_does_not_hold_is_refused_in_a_sentence() -> None:
    tests = Path(__file__).parents[1]
    code = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests / 'engines')!r}]; import test_batches as t; "
    ran = [sys.executable, "-c", code + "t.compress_in_little_memory()"]
    said = subprocess.run(ran, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert len(said) == 3 and all(
        "there is not enough memory to run these texts; shorten them" in line for line in said
    )


def test_other_failures_of_torch_are_not_taken_for_a_want_of_memory() -> None:
    for problem in (RuntimeError("shapes"), ValueError("x")):
        with pytest.raises(type(problem), match=str(problem)), within_memory():
            raise problem
    for problem in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(InputError, match="not enough memory"), within_memory():
            raise problem


# Evaluation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [
        {"prompt": f"Say {n}{' and be kind' * (n % 4)}.", "input": "now" * (n % 2), "output": f"It is {'n' * n}."}
        for n in range(9)
    ]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def values(model: GistModel, data: str) -> dict[tuple[str, str], float]:
    """Every condition's metrics."""
    fields: dict[str, Any] = {"ks": (1, 3), "new_tokens": 4, "batch_size": 8, "resamples": 20}
    config = EvalConfig(**fields, baselines=("truncation", "pooled", "last", "selected", "untrained"))
    found = evaluate(model, data, config).results["conditions"]
    return {
        (label(each["name"], each["k"]), metric): figures["value"]
        for each in found
        for metric, figures in each["metrics"].items()
    }


def test_an_evaluation_runs_no_more_tokens_together_and_has_the_same_results(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = GistModel(tiny_checkpoint(), batch_tokens=1 << 30)
    whole = values(loaded, data)
    measured, sizes = runner._measure_batch, list[tuple[int, int]]()

    def counted(engine: Any, places: Sequence[int], conditions: Any, table: Any, *more: Any) -> Any:
        sizes.append((len(places), len(places) * max(map(table.length, places))))
        return measured(engine, places, conditions, table, *more)

    monkeypatch.setattr(runner, "_measure_batch", counted)
    for bound in (1, 150):
        sizes.clear()
        loaded.batch_tokens = bound
        assert values(loaded, data) == pytest.approx(whole, abs=1e-5)
        assert sum(rows for rows, _ in sizes) == 9
        assert all(rows == 1 or tokens <= bound for rows, tokens in sizes)
    assert any(rows > 1 for rows, _ in sizes)


def test_scores_are_tensors_on_the_cpu_in_the_order_of_the_inputs() -> None:
    loaded = GistModel(tiny_checkpoint(), batch_tokens=40)
    scores = loaded.score(["a", "b", "c"], ["x", "a longer one", "yy"])
    alone = [loaded.score(text, output) for text, output in (("a", "x"), ("b", "a longer one"), ("c", "yy"))]
    for one, other in zip(scores, alone, strict=True):
        assert isinstance(other, Tensor)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bound", [0, -1, 2.5, "x", None, True])
def test_a_bound_that_is_no_whole_number_of_1_or_more_is_refused(bound: Any) -> None:
    for name, options in (("batch_size", (bound, 10)), ("batch_tokens", (10, bound))):
        with pytest.raises(InputError, match=f"{name} must be a whole number of 1 or more"):
            list(batches([(1,), (2,)], *options))
