"""Fills the tables of measured figures in README.md from benchmarks/results; measures nothing.

Run: python docs/figures.py [--check]      --check fails when README is not what would be written

A table stands between `<!-- NAME: made by docs/figures.py -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tables import table

from gistlm.evaluation.statistics import paired_differences

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_SLOT = re.compile(r"(<!-- ([\w-]+): made by docs/figures\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write README if it changes, or say that it is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when README is stale")
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = _SLOT.sub(lambda slot: f"{slot[1]}\n{FIGURES[slot[2]]()}\n\n{slot[3]}", old)
    if parser.parse_args().check:
        if new != old:
            sys.exit("the figures in README.md are not those of benchmarks/results; write them anew with: make docs")
    else:
        path.write_text(new, encoding="utf-8")


def quality() -> str:
    """Gap closed by gists, and by the best baseline of the same bytes."""
    found, rounded = read("eval-alpaca-unseen"), read("eval-alpaca-unseen-bfloat16")
    in_bfloat16 = gists(rounded)
    rows = [
        [
            tokens(gist),
            f"{gist['compression']:.1f}x",
            *(gap(gist, "nll"), gap(gist, "kl"), gap(in_bfloat16[gist["k"]], "kl")),
            *rival,
        ]
        for gist, rival in gists_and_rivals(found)
    ]
    head = [
        "gist of at most",
        "compression",
        "likelihood of the reference answers",
        "divergence from the full prompt's model",
        "the same, in bfloat16",
        "best baseline of equal bytes (divergence)",
        "paired difference, gist less that baseline, in points, on prompts of more tokens",
    ]
    return f"{table(head, rows)}\n\n{data_line(found)} In bfloat16: {data_line(rounded)}"


def answers() -> str:
    """How near gists' answers are to the full prompt's, and no prompt's beside them."""
    results = {
        "unseen": read("eval-alpaca-unseen-answers"),
        "unseen, bfloat16": read("eval-alpaca-unseen-answers-bfloat16"),
        "seen": read("eval-alpaca-seen-answers"),
    }
    rows = [
        [
            data,
            tokens(condition) if condition["k"] else "no prompt",
            gap(condition, "answer_kl") if condition["k"] else "",
            f"{condition['metrics']['answer_agreement']['value']:.0%}",
            f"{condition['metrics']['answer_rougeL']['value']:.2f}",
            gap(condition, "rougeL") if condition["k"] else "",
        ]
        for data, found in results.items()
        for condition in found["conditions"]
        if condition["name"] in ("none", "gist")
    ]
    head = [
        "rows, dtype",
        "gist of at most",
        "divergence on the full prompt's answers",
        "same next token on them",
        "ROUGE-L of its own answers to them",
        "ROUGE-L of its own answers to the references, gap closed",
    ]
    lines = [f"{data.capitalize()}: {data_line(found)}" for data, found in results.items()]
    return f"{table(head, rows)}\n\n{' '.join(lines)}"


def gists(found: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By k."""
    return {condition["k"]: condition for condition in found["conditions"] if condition["name"] == "gist"}


def system_prompts() -> str:
    """The same on long system prompts, without answers."""
    found = read("eval-system-prompts")
    rows = [
        [tokens(gist), f"{gist['compression']:.1f}x", gap(gist, "nll"), gap(gist, "kl"), *rival]
        for gist, rival in gists_and_rivals(found)
    ]
    head = [
        "gist of at most",
        "compression",
        "likelihood of the answers",
        "divergence",
        "best baseline of equal bytes",
        "paired difference, gist less that baseline, in points, on prompts of more tokens",
    ]
    return f"{table(head, rows)}\n\n{data_line(found)}"


def gists_and_rivals(found: dict[str, Any]) -> list[tuple[dict[str, Any], list[str]]]:
    """The gist of each k, and of the baseline of as many bytes that is nearest to the full prompt's model its name and
    gap closed, and the paired difference against it.
    """
    differences = {(each.baseline, each.k): f"{each}; {each.rows} rows" for each in paired_differences(found, "kl")}
    pairs = []
    for k in found["settings"]["k"]:
        same = [condition for condition in found["conditions"] if condition["k"] == k]
        gist = next(condition for condition in same if condition["name"] == "gist")
        rivals = [condition for condition in same if condition["name"] != "gist"]
        best = max(rivals, key=lambda rival: rival["metrics"]["kl"]["gap_closed"])
        pairs.append((gist, [f"{best['name']}: {gap(best, 'kl')}", differences[best["name"], k]]))
    return pairs


def tokens(gist: dict[str, Any]) -> str:
    """How many it has at most."""
    return f"{gist['k']} token{'s' * (gist['k'] > 1)}"


def retention() -> str:
    """Right answers by kind of content."""
    found = read("eval-retention")
    others = {
        "bfloat16": read("eval-retention-bfloat16"),
        "other probes, bfloat16": read("eval-retention-seed-1-bfloat16"),
    }
    entries = {(entry["kind"], entry["condition"]): entry for entry in found["retention"]}
    each = found["retention"][0]["n"]
    widest = max(high - low for low, high in (entry["score_95"] for entry in entries.values()))
    for name, other in others.items():
        compared = (entry for entry in other["retention"] if entry["condition"] in ("full", "gist@8"))
        entries |= {(entry["kind"], f"{entry['condition']}, {name}"): entry for entry in compared}
    kinds, conditions = (list(dict.fromkeys(keys)) for keys in zip(*entries, strict=True))
    rows = [[kind, *(f"{entries[kind, condition]['score']:.0%}" for condition in conditions)] for kind in kinds]
    intervals = f"with 95 % intervals of up to {100 * widest:.0f} points: the model card has them"
    runs = [f"{name.capitalize()}: {run_line(other['run'])}" for name, other in others.items()]
    lines = " ".join([f"{each} probes of each kind, {intervals}.", run_line(found["run"]), *runs])
    return f"{table(['kind', *conditions], rows)}\n\n{lines}"


def cost() -> str:
    """Ratios of times within one run."""
    found = read("cost-smollm2-135m")
    rows = [
        [
            str(compared["prompt_tokens"]),
            str(compared["batch"]),
            ratio(compared["first_token_vs_full_prompt"]),
            ratio(compared["first_token_vs_cached_prompt"]),
            ratio(compared["answer_vs_full_prompt"]),
            ratio(compared["answer_vs_same_tokens"]),
            ratio(made["speed_ratio"]),
            ratio(made["speed_ratio_as_many"]),
            str(compared["requests_to_pay"] or "never"),
            f"{compared['cache_bytes_saved']:,}",
        ]
        for compared, made in zip(found["comparison"], found["compression"], strict=True)
    ]
    head = [
        "prompt tokens",
        "batch",
        "first token, against re-encoding",
        "first token, against a kept cache",
        f"answer of {found['settings']['new_tokens']} tokens, against re-encoding",
        "the same, against plain transformers on as many tokens",
        "compression, tokens a second against prefill's",
        "the same, against prefill of prompts longer by k",
        "requests until it pays",
        "cache bytes saved a prompt",
    ]
    settings, machine = found["settings"], found["machine"]
    run = {"command": found["command"], "date": found["date"], "machine": machine}
    return (
        table(head, rows) + f"\n\nk={settings['k']}, {machine['dtype']}, medians of {settings['repeats']} rounds, "
        f"seed {settings['seed']}. {run_line(run)}"
    )


def rules() -> str:
    """Exact match of the small T5 by the number of rules in the prompt."""
    found = read("t5-rules")
    by_rules = found["by_rules"]
    ks = list(by_rules["1"]["gist"])
    head = ["rules in the prompt", "full prompt", "no prompt", *(f"k={k}" for k in ks), "gap closed, k=1"]
    rows = [
        [count, *(f"{score:.0%}" for score in (each["full"], each["none"], *each["gist"].values())), closed(each)]
        for count, each in by_rules.items()
    ]
    return table(head, rows) + f"\n\n{by_rules['1']['rows']} prompts each, seed 0. {run_line(found['run'])}"


def closed(each: dict[str, Any]) -> str:
    """The gap that one gist token closes."""
    fraction = each["gap_closed"]["1"]
    return "no gap" if fraction is None else f"{fraction:.0%}"


def read(name: str) -> dict[str, Any]:
    """One result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def gap(condition: dict[str, Any], metric: str) -> str:
    """The gap closed with its interval."""
    figures = condition["metrics"].get(metric)
    if figures is None:
        return "not measured"
    low, high = figures["gap_closed_95"]
    return f"{figures['gap_closed']:.0%} ({low:.0%} to {high:.0%})"


def ratio(values: dict[str, float]) -> str:
    """The median."""
    return f"{values['median']:.2f}"


def data_line(found: dict[str, Any]) -> str:
    """Rows and seed, and how they were measured."""
    data, settings = found["data"], found["settings"]
    return f"{data['rows']} rows of {data['name']}, seed {settings['seed']}. {run_line(found['run'])}"


def run_line(run: dict[str, Any]) -> str:
    """Command, date and machine."""
    machine = run["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"`{run['command']}`, {run['date']}, {machine['cpu']}, {threads}."


FIGURES = {
    "quality": quality,
    "answers": answers,
    "system-prompts": system_prompts,
    "retention": retention,
    "cost": cost,
    "rules": rules,
}

if __name__ == "__main__":
    main()
