"""Encoder-decoder models: the cached path against one pass of the stock encoder under a mask filled block by block."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import ENCODER_DECODERS, random_text, tiny_checkpoint, tiny_model
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from gistlm.data.rows import Row
from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import GistMismatchError, InputError
from gistlm.gist import Gist
from gistlm.gisting.placement import Condition
from gistlm.models.checkpoint import Checkpoint
from gistlm.training.batches import collate, tokenize
from gistlm.training.objectives import passes_of

NEW_TOKENS = 4
BATCHES = 35
"""Of each of three architectures and two recipes: 210 in all."""
CASES = [(kind, recipe) for kind in ENCODER_DECODERS for recipe in ("frozen", "paper")]


class OnePass:
    """The stock model, one request at a time and without padding."""

    def __init__(self, checkpoint: Checkpoint, kind: str) -> None:
        self.model: Any = tiny_model(kind)
        self.prompts = checkpoint.prompts
        self.gist_embeddings = checkpoint.gist_embeddings.detach()
        self.gist_columns = slice(0, 0)
        if checkpoint.writer is not checkpoint.reader:
            stock = dict(self.model.named_modules())
            for name, layer in checkpoint.writer.named_modules():
                if isinstance(layer, LoraLayer):
                    down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
                    stock[name.removeprefix("base_model.model.")].register_forward_hook(
                        self._adding((up @ down) * layer.scaling["default"])
                    )

    def _adding(self, delta: Tensor) -> Any:
        def hook(_: Any, inputs: Any, output: Tensor) -> Tensor:
            added = torch.zeros_like(output)
            added[:, self.gist_columns] = inputs[0][:, self.gist_columns] @ delta.T
            return output + added

        return hook

    @torch.no_grad()
    def states(self, request: Request, prompt: str) -> Tensor:
        """What the decoder may read: [1, tokens, hidden]."""
        rest = self.prompts.rest_ids(request.input)
        self.gist_columns = slice(0, 0)
        if request.gist is None:
            ids = (self.prompts.prompt_ids(prompt) if request.prompt is not None else []) + rest
            return self.model.encoder(input_ids=torch.tensor([ids])).last_hidden_state  # type: ignore[no-any-return]
        before, k = self.prompts.prompt_ids(prompt), request.gist.k
        embed = self.model.get_input_embeddings()
        columns = [embed(torch.tensor(before)), self.gist_embeddings[:k], embed(torch.tensor(rest))]
        p, g, r = torch.arange(len(before) + k + len(rest)).split([len(before), k, len(rest)])
        seen = torch.zeros(len(before) + k + len(rest), len(before) + k + len(rest), dtype=torch.bool)
        for queries, keys in ((p, p), (p, g), (g, p), (g, g), (r, g), (r, r)):
            seen[queries[:, None], keys] = True
        self.gist_columns = slice(len(before), len(before) + k)
        whole = self.model.encoder(
            inputs_embeds=torch.cat(columns)[None], attention_mask=torch.where(seen, 0.0, -1e30)[None, None]
        ).last_hidden_state
        self.gist_columns = slice(0, 0)
        return whole[:, len(before) :]

    @torch.no_grad()
    def logits(self, states: Tensor, output: list[int]) -> Tensor:
        """[tokens, vocabulary] that predict an output."""
        start = torch.tensor([[self.model.config.decoder_start_token_id, *output[:-1]]])
        return self.model(  # type: ignore[no-any-return]
            encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=start, use_cache=False
        ).logits[0]

    def check_greedy(self, states: Tensor, answer: list[int], endings: list[int]) -> None:
        """That each token is the likeliest behind those before it, and that an ending was where the answer is short."""
        likeliest = self.logits(states, [*answer, 0]).argmax(-1).tolist()
        assert likeliest[:-1] == answer and not {*answer} & {*endings}
        assert len(answer) == NEW_TOKENS or (len(answer) < NEW_TOKENS and likeliest[-1] in endings)


@cache
def loaded(kind: str, recipe: str) -> tuple[GistModel, OnePass]:
    checkpoint = tiny_checkpoint(kind, recipe, opening_visible=False)
    checkpoint.prompts.decode = lambda ids: " ".join(map(str, ids))  # type: ignore[method-assign]
    return GistModel(checkpoint, batch_size=16), OnePass(checkpoint, kind)


def random_requests(model: GistModel, generator: torch.Generator) -> tuple[list[Request], list[str]]:
    """1 to 16 rows: most with a gist of 1 to 16 tokens, some with a full prompt, some with nothing."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    prompts = [random_text(generator, draw(1, draw(1, 200))) for _ in range(draw(1, 16))]
    ks = [draw(1, 16) for _ in range(3)]
    made = {k: model.compress(prompts, k) for k in ks}
    requests = []
    for row, prompt in enumerate(prompts):
        text, chance = random_text(generator, draw(1, 30)), draw(1, 10)
        gist = made[ks[draw(0, 2)]][row] if chance > 3 else None
        requests.append(Request(text, gists=gist, prompt=prompt if chance in (2, 3) else None))
    return requests, prompts


@pytest.mark.parametrize(("kind", "recipe"), CASES)
def test_the_cached_path_equals_one_pass_under_the_mask(kind: str, recipe: str) -> None:
    model, one_pass = loaded(kind, recipe)
    generator = torch.Generator().manual_seed(len(kind) + len(recipe))
    for _ in range(BATCHES):
        requests, prompts = random_requests(model, generator)
        states = [one_pass.states(request, prompt) for request, prompt in zip(requests, prompts, strict=True)]
        answers = model.complete(with_sampling(requests, Sampling(max_new_tokens=NEW_TOKENS)))
        outputs = [random_text(generator, 1 + row) for row in range(len(requests))]
        cached = model.logits(requests, outputs)
        for state, answer, output, logits in zip(states, answers, outputs, cached, strict=True):
            expected = one_pass.logits(state, model.checkpoint.prompts.output_ids(output))
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
            one_pass.check_greedy(state, [*map(int, answer.text.split())], model._ending_ids)


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_a_request_without_a_gist_gets_the_stock_models_logits_bit_for_bit(kind: str) -> None:
    model, _ = loaded(kind, "frozen")
    ids, output = model.checkpoint.prompts, "an answer"
    [logits] = model.logits([Request("an input", prompt="a prompt")], [output])
    tokens = torch.tensor([ids.prompt_ids("a prompt") + ids.rest_ids("an input")])
    labels = torch.tensor([ids.output_ids(output)])
    stock: Any = tiny_model(kind)
    with torch.no_grad():
        expected = stock(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).logits[0]
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(("kind", "recipe"), CASES)
@torch.no_grad()
def test_the_two_forms_that_training_may_use_give_the_same_logits(kind: str, recipe: str) -> None:
    model, one_pass = loaded(kind, recipe)
    checkpoint, generator = model.checkpoint, torch.Generator().manual_seed(3)
    rows = [Row(random_text(generator, n), random_text(generator, 9), random_text(generator, 7)) for n in (1, 30, 90)]
    ks = [1, 5, 8]
    batch = collate([tokenize(row, checkpoint.prompts) for row in rows], ks)
    last, passes = int(batch.output_lengths.min()), passes_of(checkpoint)
    full, encoded = passes.full_prompt(batch, last)
    cached = {
        Condition.GIST: passes.run_rest(batch, passes.write(encoded, batch)[0], Condition.GIST, last),
        Condition.POSITIVE: full,
        Condition.NEGATIVE: passes.run_rest(batch, None, Condition.NEGATIVE, last),
    }
    if recipe == "paper":  # a frozen adapter does not act on all columns of one pass
        for condition, logits in cached.items():
            torch.testing.assert_close(logits, passes.masked_pass(batch, condition, last), atol=1e-4, rtol=0)
    for place, (row, k) in enumerate(zip(rows, ks, strict=True)):
        asked = {
            Condition.GIST: Request(row.input, gists=model.compress(row.prompt, k=k)),
            Condition.POSITIVE: Request(row.input, prompt=row.prompt),
            Condition.NEGATIVE: Request(row.input, bare_opening=True),
        }
        for condition, request in asked.items():
            states = one_pass.states(request, row.prompt)
            expected = one_pass.logits(states, checkpoint.prompts.output_ids(row.output))[-last:]
            torch.testing.assert_close(cached[condition][place], expected, atol=1e-4, rtol=0)


def test_a_gist_survives_its_file_and_cannot_be_shortened(tmp_path: Any) -> None:
    model, _ = loaded("t5", "frozen")
    gist = model.compress("say it twice", k=4)
    assert gist.states is not None and gist.states.shape == (4, 32)
    again = Gist.load(gist.save(tmp_path / "x.gist"))
    assert again.id == gist.id and again.info()["kind"] == "encoder"
    assert again.nbytes == gist.nbytes == 4 * (2 * 3 * 4 * 8 + 32) * 4
    assert model.generate("hm", again, max_new_tokens=4) == model.generate("hm", gist, max_new_tokens=4)
    with pytest.raises(InputError, match=r"cannot be shortened.*smaller k"):
        gist.shorten(2)


def test_a_gist_of_one_kind_is_refused_by_a_model_of_the_other() -> None:
    encoder, _ = loaded("t5", "frozen")
    decoder = GistModel(tiny_checkpoint("llama"))
    for mine, other in ((encoder, decoder), (decoder, encoder)):
        with pytest.raises(GistMismatchError, match="compress the prompt again"):
            mine.generate("hm", other.compress("a prompt", k=2))


def test_streaming_gives_the_answer_in_pieces_and_a_conversation_is_refused() -> None:
    model = GistModel(tiny_checkpoint("t5"))
    gist = model.compress("say it twice", k=4)
    assert "".join(model.stream("hm", gist, max_new_tokens=6)) == model.generate("hm", gist, max_new_tokens=6)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(InputError, match="answers one message"):
        model.generate(turns, gist)
