"""However a response is read, alone or beside others, its log-probabilities and their gradients are the same."""

import functools

import pytest
import torch

from ctrlrl.llm.language_model import LanguageModel
from tests.llm.small_models import TOKENIZER, Bigram, gpt2, llama


def batch():
    """Two prompts of different length, left-padded, with three responses of four tokens each."""
    prompts = [TOKENIZER(text)["input_ids"] for text in ("^ab>", "^fedcb>")]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    torch.manual_seed(3)
    return ids, mask, torch.randint(3, 22, (6, 4)), prompts


def logits(model, *, learning=False):
    ids, mask, responses, _ = batch()
    return model.head(model.response_states(ids, mask, responses, learning=learning))


def gradient(model, **options):
    loss = logits(model, **options).log_softmax(-1).square().mean()
    params = [p for p in model.module.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])


@pytest.mark.parametrize("make", [llama, gpt2])
def test_prompts_read_once_give_the_logits_of_every_response_read_alone(make):
    module = make()
    _, _, responses, prompts = batch()
    found = logits(LanguageModel(module))
    for i, response in enumerate(responses.tolist()):
        prompt = prompts[i // 3]
        alone = module(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(found[i], alone, rtol=1e-4, atol=1e-4)


def test_log_probs_sum_to_the_models_own_loss():
    module = llama()
    ids, _, responses, _ = batch()
    prompt, response = ids[1:], responses[3:4]
    model = LanguageModel(module)
    log_p = model.head(model.response_states(prompt, None, response)).log_softmax(-1)
    told = log_p.gather(-1, response.unsqueeze(-1)).sum()
    labels = torch.cat([torch.full_like(prompt, -100), response], 1)
    loss = module(torch.cat([prompt, response], 1), labels=labels).loss
    torch.testing.assert_close(-told / 4, loss, rtol=1e-5, atol=1e-6)


def test_gradients_through_shared_prompts_are_those_of_prompts_read_for_each_response():
    module = llama()
    shared = gradient(LanguageModel(module))
    model = LanguageModel(module)
    model.cached = False  # then every response is read with its prompt
    model.masked = True
    torch.testing.assert_close(shared, _whole(model), rtol=1e-3, atol=1e-5)


def _whole(model):
    ids, mask, responses, _ = batch()
    ids, mask = ids.repeat_interleave(3, 0), mask.repeat_interleave(3, 0)
    whole = torch.cat([ids, responses], 1)[:, :-1]
    attended = torch.cat([mask, torch.ones_like(responses, dtype=torch.bool)], 1)[:, :-1]
    found = model.module(
        input_ids=whole, attention_mask=attended.long(), position_ids=(attended.cumsum(1) - 1).clamp(0)
    )
    loss = found.logits[:, -4:].log_softmax(-1).square().mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.module.parameters()))])


def test_gradient_checkpointing_leaves_the_gradient_as_it_is():
    plain = gradient(LanguageModel(llama()))
    model = LanguageModel(llama(), checkpoint=True)
    torch.testing.assert_close(gradient(model, learning=True), plain, rtol=1e-3, atol=1e-5)
    assert not any(module.training for module in model.module.modules())


def test_dropout_that_was_left_on_is_off():
    module = llama()
    module.config.attention_dropout = 0.5
    for layer in module.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model = LanguageModel(module.train())
    assert torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model, learning=True), logits(model))


def test_a_layer_that_would_drop_while_checkpointing_is_refused():
    module = llama()
    module.model.layers[0].dropout = 0.1
    with pytest.raises(ValueError, match="LlamaDecoderLayer would drop"):
        LanguageModel(module, checkpoint=True)


def test_a_plain_module_refuses_prompts_of_different_length():
    with pytest.raises(ValueError, match="prompts of one length"):
        logits(LanguageModel(Bigram()))


def test_logits_that_are_not_the_output_layers_are_taken_whole():
    module = llama()
    module.config.logit_scale = 0.5
    model = LanguageModel(module)
    assert not model.split
    assert logits(model).shape == (6, 4, 22)


def test_logits_that_no_setting_tells_of_are_taken_whole():
    module = llama()
    plain = module.forward

    @functools.wraps(plain)
    def capped(*args, **told):
        out = plain(*args, **told)
        out.logits = 0.1 * torch.tanh(out.logits / 0.1)
        return out

    module.forward = capped
    model = LanguageModel(module)
    assert not model.split
    assert float(logits(model).detach().abs().max()) < 0.101


def test_a_model_without_a_cache_that_can_be_copied_reads_every_response_whole():
    module = llama()
    wanted = logits(LanguageModel(module)).detach()
    plain = module.forward

    @functools.wraps(plain)
    def bare(*args, **told):
        out = plain(*args, **told)
        out.past_key_values = None
        return out

    module.forward = bare
    model = LanguageModel(module)
    assert not model.cached
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft, about transformers
def test_adapters_that_learn_a_prompt_are_refused():
    peft = pytest.importorskip("peft")
    settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="not taken, use LoRA"):
        LanguageModel(peft.get_peft_model(llama(), settings))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft, about transformers
def test_adapters_are_trained_and_can_be_left_out():
    peft = pytest.importorskip("peft")
    base = llama()
    before = logits(LanguageModel(base)).detach()
    low_rank = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, low_rank)
    model = LanguageModel(adapted)
    with torch.no_grad():
        assert not torch.allclose(logits(model), before)
        with model.without_adapters():
            torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
