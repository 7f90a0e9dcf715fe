"""Leaving out what isn't read changes nothing that is."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from imagelm.accel.compile import blocks
from imagelm.accel.last_block import only_at

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
OWN = {"llama": {"intermediate_size": 64}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}}


# With the layer; with one that is added to in place (falcon); with one that takes the residual too; without one.
@pytest.mark.parametrize(
    ("model_type", "saves"),
    [("gpt2", True), ("llama", True), ("gpt_neox", True), ("falcon", True), ("bloom", False), ("opt", False)],
)
def test_the_position_that_is_read_has_the_same_logits(model_type, saves):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **OWN.get(model_type, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    ids, positions = torch.randint(3, 40, (4, 17)), torch.tensor([16, 0, 7, 16])
    seen = []
    layer = getattr(blocks(model)[-1], "mlp", None)
    if layer is not None:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    rows = torch.arange(4)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[rows, positions]
        with only_at(model, positions):
            found = model(input_ids=ids, use_cache=False).logits[rows, positions]
        after = model(input_ids=ids, use_cache=False).logits[rows, positions]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(after, expected)
    assert seen == ([] if layer is None else [17, 1 if saves else 17, 17])
