"""The baselines on tiny random models: what they hold, and that a baseline with room for all is the full prompt."""

from pathlib import Path

import pytest
import torch
from tiny import random_text, tiny_checkpoint, tiny_tokenizer
from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

from gistlm.engines.base import Request
from gistlm.engines.transformers import GistModel
from gistlm.errors import ModelNotFoundError, UnsupportedModelError
from gistlm.evaluation import words
from gistlm.evaluation.baselines import BASELINES, Source, make_baseline
from gistlm.gist import Gist
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.transformers_compat import CACHE

PROMPTS = ["You answer for a shop. Be short.", "Returns are taken for thirty days, and they are free of charge."]
TEXT, OUTPUT = "Where is it?", "In the box."
ROTARY = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt_neox", "phi3"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random BERT that labels tokens, with a vocabulary of letters and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz.,?"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, num_labels=2, **sizes)
    config.initializer_range = 1.0
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return str(folder)


def source(checkpoint: Checkpoint, classifier: str = "") -> Source:
    return Source(checkpoint, PROMPTS, classifier)


def own_tokens(checkpoint: Checkpoint, prompt: str) -> int:
    return len(checkpoint.prompts.prompt_ids(prompt)) - checkpoint.placement.opening


def logits(model: GistModel, *, gist: Gist | None = None, prompt: str | None = None) -> torch.Tensor:
    (found,) = model.logits([Request(TEXT, gist, prompt)], [OUTPUT])
    return found


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("opening_visible", [True, False])
def test_every_baseline_holds_as_many_bytes_as_a_gist(name: str, opening_visible: bool, classifier: str) -> None:
    checkpoint = tiny_checkpoint(opening_visible=opening_visible)
    made = make_baseline(name, source(checkpoint, classifier))(PROMPTS, [1, 4, 7])
    for k, gists in made.items():
        wanted = GistModel(checkpoint).compress(PROMPTS, k)
        assert [gist.nbytes for gist in gists] == [gist.nbytes for gist in wanted]
        assert [gist.provenance.prompt_sha256 for gist in gists] == [gist.provenance.prompt_sha256 for gist in wanted]
        for gist in gists:
            assert logits(GistModel(checkpoint), gist=gist).isfinite().all()


@pytest.mark.parametrize("name", ["truncation", "last", "pooled"])
@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("more", [0, 5])
def test_with_room_for_every_token_a_cut_prompt_is_the_full_prompt(name: str, kind: str, more: int) -> None:
    checkpoint = tiny_checkpoint(kind)
    model, prompt = GistModel(checkpoint), PROMPTS[0]
    k = own_tokens(checkpoint, prompt) + more
    gist = make_baseline(name, source(checkpoint))([PROMPTS[1], prompt], [k])[k][1]
    assert gist.k == own_tokens(checkpoint, prompt)
    torch.testing.assert_close(logits(model, gist=gist), logits(model, prompt=prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["truncation", "last"])
def test_the_same_holds_for_learned_absolute_positions(name: str) -> None:
    checkpoint = tiny_checkpoint("gpt2")
    k = own_tokens(checkpoint, PROMPTS[0])
    gist = make_baseline(name, source(checkpoint))(PROMPTS, [k])[k][0]
    model = GistModel(checkpoint)
    torch.testing.assert_close(logits(model, gist=gist), logits(model, prompt=PROMPTS[0]), atol=1e-4, rtol=1e-4)


def test_where_all_words_fit_keywords_are_the_full_prompt(classifier: str) -> None:
    checkpoint = tiny_checkpoint()
    model, prompt = GistModel(checkpoint), PROMPTS[0]
    for name in ("tfidf", "llmlingua2"):
        gist = make_baseline(name, source(checkpoint, classifier))([prompt], [500])[500][0]
        torch.testing.assert_close(logits(model, gist=gist), logits(model, prompt=prompt), atol=1e-4, rtol=1e-4)


def test_a_truncated_prompt_is_read_as_a_shorter_prompt() -> None:
    checkpoint = tiny_checkpoint()
    short = PROMPTS[0][:4]
    k = own_tokens(checkpoint, short)
    gist = make_baseline("truncation", source(checkpoint))([PROMPTS[0]], [1, k, 9])[k][0]
    model = GistModel(checkpoint)
    torch.testing.assert_close(logits(model, gist=gist), logits(model, prompt=short), atol=1e-4, rtol=1e-4)


def test_pooled_keys_are_averaged_at_one_position_not_at_their_own() -> None:
    checkpoint = tiny_checkpoint()
    h, n = checkpoint.placement.opening, own_tokens(checkpoint, PROMPTS[0])
    make = make_baseline("pooled", source(checkpoint))
    whole, halves = (make([PROMPTS[0]], [k])[k][0] for k in (n, 2))
    assert (halves.provenance.start, halves.end) == (h, h + 2)
    torch.testing.assert_close(halves.values[1][:, 0], whole.values[1][:, : n // 2].mean(1), atol=1e-5, rtol=1e-5)
    naive = whole.keys[1][:, : n // 2].mean(1)
    assert not torch.allclose(halves.keys[1][:, 0], naive, atol=1e-2)


def test_a_batch_gives_what_each_prompt_gives_alone(classifier: str) -> None:
    checkpoint = tiny_checkpoint()
    for name in BASELINES:
        make = make_baseline(name, source(checkpoint, classifier))
        together, alone = make(PROMPTS, [3])[3], [make([prompt], [3])[3][0] for prompt in PROMPTS]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "cohere2"])
def test_pooling_says_which_architecture_has_no_standard_rotary_embedding(kind: str) -> None:
    checkpoint = tiny_checkpoint(kind, recipe="paper")  # absolute, a table inside attention, neighbouring dimensions
    with pytest.raises(UnsupportedModelError, match=rf"{kind}.*rotary"):
        make_baseline("pooled", source(checkpoint))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_selected_tokens_are_the_prompts_own_and_nothing_is_learned(kind: str) -> None:
    checkpoint = tiny_checkpoint(kind)
    selected = make_baseline("selected", source(checkpoint))(PROMPTS, [2, 8])
    for prompt, few, many in zip(PROMPTS, selected[2], selected[8], strict=True):
        assert (few.k, many.k) == (few.provenance.kept, many.provenance.kept) == (2, 8)
        ids = torch.tensor([checkpoint.prompts.prompt_ids(prompt)])
        whole = few.provenance.start == ids.shape[1]
        first = 0 if whole else checkpoint.placement.opening - ids.shape[1]
        with torch.no_grad():
            cache = checkpoint.reader(ids, position_ids=torch.arange(first, first + ids.shape[1])[None])[CACHE]
        for (keys, _, _), some, more in zip(cache, few.keys, many.keys, strict=True):
            distances = (more[:, :, None] - keys[0][:, None]).abs().amax(-1).amin(-1)
            assert float(distances.max()) < 1e-5
            torch.testing.assert_close(some, more[:, :2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mistral", "t5"])
def test_selected_says_which_models_read_no_kept_tokens(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match="kept"):
        make_baseline("selected", source(tiny_checkpoint(kind, recipe="paper")))


def test_untrained_gist_tokens_know_nothing_of_the_checkpoints_training() -> None:
    checkpoint = tiny_checkpoint()
    gists = make_baseline("untrained", source(checkpoint))(PROMPTS, [2])[2]
    trained = GistModel(checkpoint).compress(PROMPTS, 2)
    assert not torch.allclose(gists[0].keys[1], trained[0].keys[1], atol=1e-3)
    with torch.no_grad():
        checkpoint.gist_embeddings.add_(1.0)
        for name, tensor in checkpoint.writer.named_parameters():
            if "lora_" in name:
                tensor.add_(1.0)
    again = make_baseline("untrained", source(checkpoint))(PROMPTS, [2])[2]
    assert torch.equal(again[0].keys[1], gists[0].keys[1])
    assert gists[0].provenance.model == trained[0].provenance.model


def test_a_classifier_that_cannot_be_loaded_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"classifier .* cannot be loaded"):
        make_baseline("llmlingua2", source(tiny_checkpoint(), str(tmp_path / "none")))


def test_a_long_text_is_classified_in_windows(classifier: str) -> None:
    rank = words.llmlingua2(classifier, "cpu")
    text = random_text(torch.Generator().manual_seed(0), 200)
    weighted = rank(text)
    assert [word for word, _ in weighted] == text.split()
    assert all(0 < weight < 1 for _, weight in weighted)


def test_rare_words_rank_above_words_of_every_prompt_and_a_repetition_comes_last() -> None:
    rank = words.tfidf(["Answer in French, please.", "Answer in German, please.", "Answer in verse, please."])
    weighted = dict(rank("Answer in verse, please."))
    assert max(weighted, key=lambda word: weighted[word]) == "verse,"
    assert [weight > 0 for _, weight in rank("verse verse")] == [True, False]


def test_prompts_without_a_word_are_no_obstacle() -> None:
    assert words.tfidf(["!!", "--"])("!! --") == [("!!", 0.0), ("--", 0.0)]


def test_the_best_words_are_kept_in_their_order_up_to_k_tokens() -> None:
    tokenizer = tiny_tokenizer()

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    weighted = [("one", 0.1), ("two", 0.9), ("three", 0.5)]
    k = len(encode(" two") + encode(" three"))
    assert tokenizer.decode(words.choose(weighted, encode, k)) == " two three"
    assert tokenizer.decode(words.choose(weighted, encode, k - 1)) == " two thre"
    assert tokenizer.decode(words.choose(weighted, encode, 100)) == "one two three"
    assert words.choose(weighted, encode, 0) == []
