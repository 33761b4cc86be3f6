"""Rows of a made-up task, and a small untrained T5 to learn it: lists of words changed by rules that the prompt states.

    python recipes/rules.py --out runs/rules

writes `train.jsonl`, `first.jsonl` (rows of one rule, to begin with), `test-1.jsonl` to `test-8.jsonl` (by the number
of rules in the prompt), and the folder `base` with a random T5 and a tokenizer of whole words. A prompt such as
"change owl to ant ; say it backwards" and an input such as "fox owl elk" give "elk ant fox". Without the prompt nobody
can tell.

Held out: a seventh of all rules (the pairs of "change", the words of the others) is in no training row. A test
prompt with one rule is such a rule; one with more contains at least one, so that its set of rules is new.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WORDS = tuple(
    "ant,bat,bee,cat,cow,dog,elk,emu,fly,fox,gnu,hen,jay,owl,pig,ram,rat,yak".split(",")  # noqa: SIM905
)
MOST_RULES = 8
BACKWARDS, DROP_FIRST = "say it backwards", "drop the first word"


@dataclass(frozen=True)
class Rules:
    """What a prompt asks for. The order of the rules in the prompt means nothing: changes come first, then dropping,
    then turning, then what is put at either end.
    """

    changes: tuple[tuple[str, str], ...] = ()
    """(from, to), each "from" once"""
    first: str = ""
    last: str = ""
    backwards: bool = False
    drop_first: bool = False

    def texts(self) -> list[str]:
        """One text a rule."""
        made = [f"change {old} to {new}" for old, new in self.changes]
        made += [f"put {self.first} first"] if self.first else []
        made += [f"put {self.last} last"] if self.last else []
        made += [BACKWARDS] if self.backwards else []
        return made + ([DROP_FIRST] if self.drop_first else [])

    def apply(self, words: Sequence[str]) -> list[str]:
        """The words after all rules."""
        changes = dict(self.changes)
        made = [changes.get(word, word) for word in words]
        made = made[1:] if self.drop_first else made
        made = made[::-1] if self.backwards else made
        return [*([self.first] if self.first else []), *made, *([self.last] if self.last else [])]


def is_held_out(text: str) -> bool:
    """Whether a rule is kept out of training; the two that have no word in them never are."""
    return text not in (BACKWARDS, DROP_FIRST) and zlib.crc32(text.encode()) % 7 == 0


def draw_rules(count: int, numbers: random.Random) -> Rules:
    """``count`` rules that do not contradict each other: the four others at most once each, the rest changes."""
    kinds = numbers.sample(["first", "last", "backwards", "drop_first"], 4)
    others = kinds[: sum(numbers.random() < 0.5 for _ in range(min(4, count)))]
    old = numbers.sample(WORDS, count - len(others))
    changes = [(word, numbers.choice([other for other in WORDS if other != word])) for word in old]
    return Rules(
        changes=tuple(changes),
        first=numbers.choice(WORDS) if "first" in others else "",
        last=numbers.choice(WORDS) if "last" in others else "",
        backwards="backwards" in others,
        drop_first="drop_first" in others,
    )


def make_row(count: int, held_out: bool, numbers: random.Random) -> dict[str, str]:
    """A row of ``count`` rules, of which one or none at all is held out from training."""
    while True:
        rules = draw_rules(count, numbers)
        texts = rules.texts()
        if any(map(is_held_out, texts)) == held_out:
            break
    numbers.shuffle(texts)
    words = draw_words([old for old, _ in rules.changes], numbers)
    return {"prompt": " ; ".join(texts), "input": " ".join(words), "output": " ".join(rules.apply(words))}


def draw_words(changed: Sequence[str], numbers: random.Random) -> list[str]:
    """3 to 6 different words; the prompt's changes concern about half of them, and one at least."""
    size = numbers.randint(3, 6)
    some = numbers.sample(changed, min(len(changed), max(1, sum(numbers.random() < 0.5 for _ in range(size)))))
    others = numbers.sample([word for word in WORDS if word not in changed], len(WORDS) - len(changed))
    words = (some + others)[:size]
    numbers.shuffle(words)
    return words


def save_base(folder: Path, seed: int) -> None:
    """A random T5 of 1.1 million weights and its tokenizer, as a transformers folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    template = re.findall(r"\w+|[:;]", f"Instruction: change to put first last ; {BACKWARDS} {DROP_FIRST} Input:")
    vocabulary = list(dict.fromkeys(["<pad>", "</s>", "<unk>", *template, *WORDS]))
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_heads=4,
        num_layers=4,
        num_decoder_layers=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(weight, std=6.0)  # heads that look to some distance from the start learn much sooner
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and base")
    parser.add_argument("--rows", type=int, default=100_000, help="training rows")
    parser.add_argument("--test-rows", type=int, default=200, help="test rows for each number of rules")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    numbers = random.Random(given.seed)
    counts = [
        numbers.randint(1, MOST_RULES) if numbers.random() < 0.7 else numbers.randint(1, 2) for _ in range(given.rows)
    ]
    save_rows(given.out / "first.jsonl", [make_row(1, False, numbers) for _ in range(given.rows // 4)])
    save_rows(given.out / "train.jsonl", [make_row(count, False, numbers) for count in counts])
    for count in range(1, MOST_RULES + 1):
        rows = [make_row(count, True, numbers) for _ in range(given.test_rows)]
        save_rows(given.out / f"test-{count}.jsonl", rows)
    save_base(given.out / "base", given.seed)


def save_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
