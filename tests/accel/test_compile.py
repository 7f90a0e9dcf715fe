"""The training form computes what the config says: compared with transformers' own forms, values and gradients."""

from __future__ import annotations

import json
import platform

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from imagelm.accel.attention import (
    CAUSAL_PRODUCT,
    FusedProduct,
    attention_in_use,
    causal_product,
    in_chunks,
    register_attention,
    use_attention,
)
from imagelm.accel.compile import accelerate_training, blocks, compile_in_training, keep_memory
from imagelm.accel.dropout import FastDropout, draw_kept, drop
from tests.conftest import train

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTH = 201


def gpt2(attention: str | None, **values) -> torch.nn.Module:
    register_attention()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, **values
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def loss_and_gradient(model, ids, **inputs) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = functional.cross_entropy(model(input_ids=ids, **inputs).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(40, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reference", ["sdpa", "eager"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_training_form_has_the_loss_and_gradient_of_the_stock_model(reference, dropout, ids):
    rates = {name: dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    stock, ours = gpt2(reference, **rates), gpt2(CAUSAL_PRODUCT, **rates)
    accelerate_training(ours, CPU, "off", None, None)
    ours.load_state_dict(stock.state_dict())
    stock.eval(), ours.eval()  # without the draws of dropout, which have their own tests
    (expected, gradient), (found, ours_gradient) = loss_and_gradient(stock, ids), loss_and_gradient(ours, ids)
    assert found == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(ours_gradient, gradient, atol=2e-7, rtol=1e-4)


@pytest.mark.parametrize("length", [54, pytest.param(LENGTH, marks=pytest.mark.slow)])
def test_a_compiled_block_has_the_gradient_of_the_stock_model(ids, length):
    """In one chunk of the product, and in several, which take the compiler of C++ twice as long."""
    ids = ids[:, :length]
    stock, ours = gpt2("sdpa", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), None
    ours = gpt2(CAUSAL_PRODUCT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    plan = accelerate_training(ours, CPU, "on", None, tuple(ids.shape))
    assert plan.compiled
    assert set(ours.state_dict()) == set(stock.state_dict())
    (expected, gradient), (found, ours_gradient) = loss_and_gradient(stock, ids), loss_and_gradient(ours, ids)
    assert found == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(ours_gradient, gradient, atol=2e-7, rtol=1e-4)


def test_only_full_batches_of_training_are_computed_compiled(ids):
    model = gpt2(CAUSAL_PRODUCT)
    seen = []
    block = blocks(model)[0]
    plain = block.forward
    block.forward = lambda *args, **kwargs: seen.append(torch.compiler.is_compiling()) or plain(*args, **kwargs)
    compile_in_training(block, tuple(ids.shape))
    model.eval()(input_ids=ids)
    model.train()(input_ids=ids[:2])
    assert seen == [False, False]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_logit_of_a_token(side, ids):
    stock, ours = gpt2("sdpa").eval(), gpt2(CAUSAL_PRODUCT).eval()
    ours.load_state_dict(stock.state_dict())
    mask = torch.ones_like(ids)
    mask[0, -50:] = 0
    mask = mask if side == "right" else mask.flip(1)
    with torch.no_grad():
        expected, found = (model(input_ids=ids, attention_mask=mask).logits for model in (stock, ours))
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4)


def test_generation_with_a_cache_gives_the_tokens_of_sdpa(ids):
    stock, ours = gpt2("sdpa").eval(), gpt2(CAUSAL_PRODUCT).eval()
    drawn = [model.generate(ids[:, :9], max_length=30, do_sample=False, pad_token_id=2) for model in (stock, ours)]
    assert torch.equal(*drawn)


def test_grouped_heads_and_windows_are_those_of_sdpa(ids):
    register_attention()
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=LENGTH,
    )  # fmt: skip
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    ours = AutoModelForCausalLM.from_config(config, attn_implementation=CAUSAL_PRODUCT)
    ours.load_state_dict(stock.state_dict())
    (expected, gradient), (found, ours_gradient) = loss_and_gradient(stock, ids), loss_and_gradient(ours, ids)
    assert found == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(ours_gradient, gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("length", [2, 54, 128, 201, 789])
def test_chunks_of_rows_omit_nothing(length):
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64) for _ in range(3))
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    torch.testing.assert_close(in_chunks(q, k, v, 0.0), expected)


@pytest.mark.parametrize("length", [2, 54, 201, 789])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_compilers_form_of_the_product_is_the_plain_one_with_its_gradient(length, dropout):
    """In float64; the draws of dropout are the same after the same seed."""
    found = []
    for function in (in_chunks, FusedProduct.apply):
        generator = torch.Generator().manual_seed(2)
        inputs = [torch.randn(2, 3, length, 8, dtype=torch.float64, generator=generator) for _ in range(3)]
        inputs = [values.requires_grad_() for values in inputs]
        weights = torch.randn(2, 3, length, 8, dtype=torch.float64, generator=generator)
        torch.manual_seed(3)
        output = function(*inputs, dropout)
        found.append([output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_row_whose_hidden_scores_are_far_greater_is_still_whole():
    q, k, v = (torch.ones(1, 1, 6, 2) for _ in range(3))
    k[:, :, 3:] = 500.0  # far beyond what an exponential in float32 reaches
    output = FusedProduct.apply(q, k, v, 0.0)
    torch.testing.assert_close(output, v)


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(1_000_003)
    dropped = drop(x, 0.1)
    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(0.1, abs=5 * (0.09 / 1e6) ** 0.5)
    torch.testing.assert_close(dropped[dropped > 0].unique(), torch.tensor([1 / 0.9]), atol=1e-5, rtol=0)
    neighbours = ((dropped[1:] == 0) & (dropped[:-1] == 0)).double().mean().item()
    assert neighbours == pytest.approx(0.01, abs=1e-3)
    assert torch.equal(drop(x, 1.0), torch.zeros_like(x))


def test_other_devices_draw_with_torch():
    kept = draw_kept(torch.empty(3, 4, device="meta"), 0.5)
    assert kept.device.type == "meta" and kept.shape == (3, 4) and kept.dtype == torch.bfloat16


@pytest.mark.parametrize("compiled", [False, True])
def test_what_dropout_drops_has_no_gradient(compiled):
    def function(x):
        return drop(torch.tanh(x), 0.5) * 3

    x = torch.randn(64, 1000, requires_grad=True)
    y = (torch.compile(function) if compiled else function)(x)
    y.sum().backward()
    assert torch.equal(y == 0, x.grad == 0)
    torch.testing.assert_close(x.grad[y != 0], (6 * (1 - torch.tanh(x) ** 2))[y != 0])


def test_dropout_follows_the_seed_and_is_off_in_evaluation():
    layer, x = FastDropout(0.3), torch.randn(100)
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first) and not torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)


def test_short_runs_ragged_rows_and_other_devices_are_not_compiled():
    for device, seconds, batch, reason in (
        (CPU, 600, (8, 16), "short"),
        (CPU, 0, (8, 16), "short"),
        (CPU, 1e4, None, "length"),
        (CPU, None, (8, 16), "full_determinism"),
        (torch.device("mps"), 1e4, (256, 201), "not measured"),
        (GPU, 1e4, (64, 201), "smaller than 51,456 tokens"),
        (GPU, 200, (256, 201), "short"),
    ):
        plan = accelerate_training(gpt2("sdpa"), device, "auto", seconds, batch)
        assert not plan.compiled and reason in plan.note()


def test_a_run_is_compiled_from_twice_the_time_that_pays():
    """On a CPU a step is 9 % shorter and compiling takes half a minute; on a GPU 22 % and 25 s."""
    for device, batch, pays in ((CPU, (8, 16), 30 / 0.09), (GPU, (256, 201), 25 / 0.22)):
        assert accelerate_training(gpt2("sdpa"), device, "auto", 2.1 * pays, batch).compiled
        assert not accelerate_training(gpt2("sdpa"), device, "auto", 1.9 * pays, batch).compiled


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_glibc_can_keep_memory():
    assert keep_memory()


@pytest.mark.parametrize("requested", [None, "eager", "sdpa", CAUSAL_PRODUCT])
def test_the_recorded_attention_is_the_one_that_is_computed(requested, ids, monkeypatch):
    """transformers calls the function of that name."""
    register_attention()
    model, called = gpt2(requested), []
    name = attention_in_use(model, requested)
    assert name == (requested or "sdpa")
    if name != "eager":  # the one that isn't in the registry
        function = AttentionInterface()[name]
        monkeypatch.setitem(
            ALL_ATTENTION_FUNCTIONS, name, lambda *args, **kwargs: called.append(name) or function(*args, **kwargs)
        )
        model(input_ids=ids)
        assert called == [name] * 2  # once a layer


def test_a_model_that_bounds_its_scores_keeps_its_own_attention(ids):
    """Neither ours nor torch's fused kernel has a softcap; without one the logits would be others."""
    sizes = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=32, num_attention_heads=2, head_dim=16)
    config = Gemma2Config(vocab_size=40, num_key_value_heads=1, attn_logit_softcapping=0.1, pad_token_id=0, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = model(input_ids=ids).logits
    use_attention(model, CAUSAL_PRODUCT)
    assert attention_in_use(model, CAUSAL_PRODUCT) == "eager"
    torch.testing.assert_close(model(input_ids=ids).logits, expected)
    one = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ValueError, match="no softcap; use --attention eager"):
        causal_product(model, one, one, one, None, softcap=0.1)


def test_how_a_run_computed_is_logged_and_recorded(prepared, tmp_path):
    done = train(prepared, tmp_path / "out", "--max_steps", "2", "--attention", "eager", "--eval_strategy", "no")
    assert "attention eager, activation gelu_pytorch_tanh; blocks not compiled" in done.stdout
    computing = json.loads((tmp_path / "out" / "run.json").read_text())["computing"]
    assert computing["attention"] == "eager" and computing["compiled"] is False
    assert computing["activation"] == "gelu_pytorch_tanh"
    config = json.loads((tmp_path / "out" / "final_model" / "config.json").read_text())
    assert config["activation_function"] == "gelu_pytorch_tanh" and not {"eager", CAUSAL_PRODUCT} & {
        value for value in config.values() if isinstance(value, str)
    }
