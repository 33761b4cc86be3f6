"""A chat template that writes a date: training fixes the day in the checkpoint, and the log says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import save_tiny

from gistlm import GistModel
from gistlm.training.config import DataSource, TrainConfig
from gistlm.training.start import create_checkpoint

DATED = (
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if loop.first %}Today: {{ date_string }}\n"
    "{% endif %}{{ message['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def test_the_date_is_logged_and_saved_with_the_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gistlm")
    base = save_tiny(tmp_path / "base")
    config = TrainConfig(
        base=str(base), data=[DataSource(path="rows.jsonl")], output=str(tmp_path / "out"), device="cpu"
    )
    create_checkpoint(config)
    assert not [said for said in caplog.messages if "date" in said]
    (base / "chat_template.jinja").write_text(DATED)
    made = create_checkpoint(config)
    day = made.prompts.format.date
    assert [said for said in caplog.messages if "date" in said] == [
        f"the chat template writes a date: {day}, fixed in the prompt format"
    ]
    made.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "gistlm.json"
    path.write_text(
        path.read_text().replace(day, "2024-02-09").replace(made.prompts.format.day.strftime("%d %b %Y"), "09 Feb 2024")
    )
    read = GistModel.from_pretrained(tmp_path / "saved", device="cpu").checkpoint.prompts
    assert read.follows_template
    for ids in (read.request_ids("be kind", "hi"), read.request_ids(None, "hi"), read.prompt_ids("be kind")):
        assert "Today: 09 Feb 2024" in read.tokenizer.decode(ids)
