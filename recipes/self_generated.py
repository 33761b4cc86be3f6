"""Rows that the base model writes itself: instructions, inputs, and its own answers under the full prompt.

Run: python recipes/self_generated.py --tasks SEED_TASKS.jsonl --rows 6000 --out rows.jsonl [--model smollm2-135m]
     ... --first-chunk 57 --rows 2000 --out more.jsonl      goes on behind a file with chunks 0 to 56, in another file

A third of the instructions are what the model writes as the user of its own chat template, the rest what it writes
after three tasks drawn from a file of instruction, input and output. Answers are sampled from the model with the
instruction as its prompt. Run again, it goes on where it stopped. Knows nothing of training.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from gistlm.data.rows import Row, read_rows
from gistlm.data.sources import normalise
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import GistlmError, InputError
from gistlm.files import check_target, write_atomically
from gistlm.gist import DTYPES
from gistlm.gisting.kv_cache import KeyValues, column_mask, key_values_of, left_pad
from gistlm.gisting.placement import Part, left_positions
from gistlm.models.catalog import load_checkpoint
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.transformers_compat import CACHE
from gistlm.prompt import PromptTokenizer

CHUNK = 64
"""Rows that are written together; each chunk has its own seed."""
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Follow the user's instruction.",
    "You are a writer and editor who does what is asked.",
    "You answer questions and solve small tasks.",
)
SHOWN = 3
"""Tasks that the model sees before it writes one."""
BARREN = 8
"""Chunks without a new row after which no more are written."""
MARK = "###"
"""Begins each task of the few-shot text."""


def main() -> None:
    """Write chunk after chunk until there are enough rows."""
    options = parse()
    try:
        run(options)
    except GistlmError as error:
        sys.exit(f"self_generated.py: {error}")


def run(options: argparse.Namespace) -> None:
    """The whole recipe for one command line."""
    if min(options.threads, options.rows, options.answer_tokens) < 1 or options.first_chunk < 0:
        raise InputError("--threads, --rows and --answer-tokens must be 1 or more, --first-chunk 0 or more")
    check_target(options.out, options.tasks)
    torch.set_num_threads(options.threads)
    tasks = [row for row in read_rows(options.tasks) if len(row.prompt + row.input) < 240]
    if len(tasks) < SHOWN:
        raise InputError(f"{options.tasks} has {len(tasks)} tasks of less than 240 characters; {SHOWN} are needed")
    rows, chunk = resume(options.out, options.first_chunk)
    model = GistModel(load_checkpoint(options.model, dtype=DTYPES.get(options.dtype)), batch_size=CHUNK)
    seen = {normalise(f"{row['instruction']} {row['input']}") for row in rows}
    with progress("rows") as bar, options.out.open("a", encoding="utf-8") as file:
        task = bar.add_task("rows", total=options.rows, completed=len(rows))
        done, barren = len(rows), 0
        while done < options.rows:
            found = write_chunk(model, tasks, chunk, options)
            fresh = [row for row in found if normalise(f"{row['instruction']} {row['input']}") not in seen]
            seen |= {normalise(f"{row['instruction']} {row['input']}") for row in fresh}
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fresh))
            file.flush()
            done, chunk, barren = done + len(fresh), chunk + 1, 0 if fresh else barren + 1
            if barren == BARREN:
                raise InputError(f"the last {BARREN} chunks had no new row; give more --tasks or --answer-tokens")
            bar.update(task, completed=done)


def progress(what: str) -> Progress:
    """A bar on stderr that counts."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def resume(path: Path, first_chunk: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Rows of the chunks that are whole, and the number of the next; what a kill cut short is removed."""
    if not path.exists():
        return [], first_chunk
    rows = []
    for line in path.read_bytes().splitlines():  # of bytes: a row's text may hold other ends of lines
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    if not all(isinstance(row, dict) and type(row.get("chunk")) is int for row in rows):
        raise InputError(f"{path} was not written by this program: a row has no chunk; name another file")
    chunk = rows[-1]["chunk"] if rows else first_chunk
    if rows and rows[0]["chunk"] < first_chunk:
        raise InputError(f"{path} begins at chunk {rows[0]['chunk']}, before --first-chunk {first_chunk}; name another")
    rows = [row for row in rows if row["chunk"] < chunk]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return rows, chunk


def write_chunk(model: GistModel, tasks: list[Row], chunk: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Up to `CHUNK` rows with their answers, the same for one seed."""
    draw = random.Random(f"{options.seed} {chunk}")
    torch.manual_seed(draw.randrange(2**32))
    write = few_shot_tasks if chunk % 3 else chat_instructions
    pairs = [(instruction, text) for instruction, text in write(model, tasks, draw) if 8 <= len(instruction) <= 600]
    if not pairs:
        return []
    answers = model.generate(
        [text for _, text in pairs],
        prompts=[instruction for instruction, _ in pairs],
        max_new_tokens=options.answer_tokens,
        temperature=options.temperature,
        seed=draw.randrange(2**32),
    )
    rows = [
        {"instruction": instruction, "input": text, "output": answer.strip(), "chunk": chunk}
        for (instruction, text), answer in zip(pairs, answers, strict=True)
    ]
    return [row for row in rows if len(row["output"]) >= 4]


def chat_instructions(model: GistModel, tasks: list[Row], draw: random.Random) -> list[tuple[str, str]]:
    """What the model writes where its template expects the user's first message."""
    prompts = model.checkpoint.prompts
    before_input = prompts.format.replace(prompt="{prompt}" + prompts.format.rest.partition("{input}")[0])
    prompt = draw.choice(SYSTEM_PROMPTS)
    request = PromptTokenizer(prompts.tokenizer, before_input).prompt_ids(prompt)
    texts = continue_text(model, request, 64)
    return [(text.strip(), "") for text in texts]


def few_shot_tasks(model: GistModel, tasks: list[Row], draw: random.Random) -> list[tuple[str, str]]:
    """What the model writes after three tasks of the file: an instruction, and an input where it gives one."""
    shown = [f"{MARK} Instruction: {row.prompt}\nInput: {row.input or 'none'}\n" for row in draw.sample(tasks, SHOWN)]
    request = model.checkpoint.prompts.plain_ids("".join(shown) + f"{MARK} Instruction:")
    written = continue_text(model, request, 64)
    pairs = []
    for text in written:
        instruction, _, given = text.partition(MARK)[0].partition("\nOutput:")[0].partition("\nInput:")
        given = given.strip()
        pairs.append((instruction.strip(), "" if given.lower().rstrip(".") in ("none", "n/a") else given))
    return pairs


def continue_text(model: GistModel, ids: list[int], new_tokens: int) -> list[str]:
    """`CHUNK` sampled continuations of the same token ids, each cut at the token that ends an answer."""
    sampling = Sampling(max_new_tokens=new_tokens, temperature=0.9, top_k=50)
    return Prefix.encode(model.checkpoint, [ids[:-1]]).generate([ids[-1:]] * CHUNK, sampling)


@dataclass(frozen=True)
class Prefix:
    """Texts after one pass of the base: whatever follows them is written from their KV cache."""

    checkpoint: Checkpoint
    key_values: KeyValues
    """by layer, [texts, kv_heads, P, head_dim], left-padded"""
    parts: Tensor
    """[texts, P] of `Part`"""

    @classmethod
    @torch.inference_mode()
    def encode(cls, checkpoint: Checkpoint, texts: Sequence[list[int]]) -> Prefix:
        """Run texts, as token ids, through the base."""
        tokens, parts = left_pad(texts, Part.PROMPT, checkpoint.reader.device)
        places, cache = left_positions(parts, torch.zeros_like(parts[:, 0])), DynamicCache()
        decoder = checkpoint.reader.get_decoder()
        decoder(tokens, attention_mask=column_mask(parts), position_ids=places, **{CACHE: cache}, use_cache=True)
        return cls(checkpoint, key_values_of(cache), parts)

    @torch.inference_mode()
    def generate(self, rests: Sequence[list[int]], sampling: Sampling, *processors: LogitsProcessor) -> list[str]:
        """What the base writes after each of ``rests``, token ids that follow the texts: as many of them for each."""
        each, ending = len(rests) // len(self.parts), self.checkpoint.prompts.output_end_ids[0]
        tokens, rest_parts = left_pad(rests, Part.REST, self.parts.device)
        parts = torch.cat([self.parts.repeat_interleave(each, dim=0), rest_parts], dim=1)  # [rests, P + longest rest]
        cache = [tuple(side.repeat_interleave(each, dim=0) for side in layer) for layer in self.key_values]
        reader: Any = copy.copy(self.checkpoint.reader)
        reader.generation_config = GenerationConfig()  # a model's own may hold penalties
        output = reader.generate(
            tokens,
            attention_mask=(parts != Part.PAD).long(),
            position_ids=left_positions(parts, torch.zeros_like(parts[:, 0])),
            **{CACHE: DynamicCache(cache)},
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_new_tokens,
                do_sample=True,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                eos_token_id=ending,
                pad_token_id=ending,
            ),
            logits_processor=LogitsProcessorList(processors),
        )
        return [self.checkpoint.prompts.decode(row) for row in output[:, tokens.shape[1] :].tolist()]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True, help="rows of instruction, input, output to draw examples from")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--first-chunk", type=int, default=0, help="where a new file begins; its rows are drawn anew")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m", help="a checkpoint; only its base is used")
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=DTYPES, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
