"""Prompts of one sign, of many without a space, and of several scripts: compressed, saved, read and answered."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import pytest
from tiny import tiny_checkpoint

from gistlm import Gist
from gistlm.engines.transformers import GistModel
from gistlm.errors import PromptTooLongError

KINDS = ["llama", "gpt2", "t5"]
PROMPTS = {
    "one letter": "x",
    "one digit": "7",
    "one emoji": "🎉",
    "a family of emoji": "👩‍👩‍👧‍👦",
    "a flag": "🇫🇷",
    "Chinese": "你是一个乐于助人的助手。请用一句话回答所有问题，不要解释。",
    "Arabic": "أَنْتَ مُسَاعِدٌ مُفِيدٌ. أَجِبْ عَنْ كُلِّ الأَسْئِلَةِ بِجُمْلَةٍ وَاحِدَةٍ.",
    "Hebrew with marks": "\u200fעֲנֵה בְּמִשְׁפָּט אֶחָד\u200f",
    "Hindi": "आप एक सहायक हैं। हर प्रश्न का उत्तर एक वाक्य में दें।",
    "Thai": "คุณเป็นผู้ช่วย ตอบทุกคำถามในประโยคเดียว",
    "letters with many marks": "a\u0301\u0302\u0303\u0304\u0305b\u0323\u0324",
    "no space at all": "abcdefghij" * 20,
    "spaces and line ends": "\r\n\t a \u00a0\u2028\u3000 b \n\n",
    "a NUL": "a\x00b",
}
INPUTS = ["hello", "🎉", "你好吗？", "كَيْفَ حَالُكَ؟", ""]


@cache
def model(kind: str) -> GistModel:
    return GistModel(tiny_checkpoint(kind))


@pytest.mark.parametrize("script", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_any_script_is_compressed_saved_read_and_answered(kind: str, script: str, tmp_path: Path) -> None:
    loaded, prompt = model(kind), PROMPTS[script]
    gist = Gist.load(loaded.compress(prompt, 3).save(tmp_path / "x.gist"))
    assert gist.k == 3 and gist.provenance.prompt_tokens == loaded.count_tokens(prompt)
    answers = loaded.generate(INPUTS, gist, max_new_tokens=8)
    assert answers == [loaded.generate(text, gist, max_new_tokens=8) for text in INPUTS]
    full = loaded.generate(INPUTS, prompts=prompt, max_new_tokens=8)
    for text, over_gist, over_prompt in zip(INPUTS, answers, full, strict=True):
        assert "".join(loaded.stream(text, gist, max_new_tokens=8)) == over_gist
        assert "".join(loaded.stream(text, prompt=prompt, max_new_tokens=8)) == over_prompt
    assert loaded.score("hello", prompt, gist).shape == (len(loaded.checkpoint.prompts.output_ids(prompt)),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", PROMPTS)
def test_a_text_of_any_script_comes_back_from_its_ids(kind: str, script: str) -> None:
    prompts = model(kind).checkpoint.prompts
    assert prompts.decode(prompts.plain_ids(PROMPTS[script])) == PROMPTS[script]


@pytest.mark.parametrize("letters", ["x", "世", "🎉", "\u0651"])
def test_a_hundred_kilobytes_without_a_space_are_too_long_within_seconds(letters: str) -> None:
    text = letters * (100_000 // len(letters.encode()))
    loaded = model("llama")
    begin = time.monotonic()
    for attempt in (
        lambda: loaded.compress(text, 2),
        lambda: loaded.compress(["x", text], 2),
        lambda: loaded.generate("hm", prompts=text),
        lambda: loaded.generate(text),
        lambda: loaded.stream(text),
        lambda: loaded.score("hm", text),
    ):
        with pytest.raises(PromptTooLongError, match=r"has [\d,]+ tokens, but this model has room for [\d,]+; shorten"):
            attempt()
    assert time.monotonic() - begin < 20
