"""MiniMax-M2's architecture in PyTorch, small, and the folder in which a trained model is kept.

`transformers` loads the same folder as MiniMaxM2ForCausalLM and computes the same logits.
"""

import json
import re

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

VOCABULARY = 1024
PAD, END, SYSTEM, USER, ASSISTANT = range(5)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

CONFIG = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "attention_dropout": 0.0,
    "attn_type_list": [1, 1, 1, 1],
    "bos_token_id": None,
    "dtype": "bfloat16",
    "eos_token_id": END,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 16,
    "output_router_logits": False,
    "pad_token_id": PAD,
    "qk_norm_type": "per_layer",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rotary_dim": 32,
    "router_aux_loss_coef": 0.0,
    "router_jitter_noise": 0.0,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": VOCABULARY,
}


def fake_fp8(x, block):
    """Rounds x to e4m3 with one scale, absmax / 448, per block of the last two dimensions."""
    rows, columns = block
    shape = x.shape
    blocks = x.float().reshape(*shape[:-2], shape[-2] // rows, rows, shape[-1] // columns, columns)
    scale = blocks.abs().amax(dim=(-3, -1), keepdim=True).clamp(min=1e-12) / 448
    rounded = (blocks / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.reshape(shape).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
        return normed.to(x.dtype) * self.weight.to(x.dtype)


class Linear(nn.Module):
    """A matrix kept in float32 and applied in the precision of its input, or in simulated FP8."""

    def __init__(self, rows, columns, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * std)
        self.fp8 = False

    def forward(self, x):
        weight = self.weight.to(x.dtype)
        if self.fp8:
            return F.linear(fake_fp8(x, (1, 128)), fake_fp8(weight, (128, 128)))
        return F.linear(x, weight)


class Attention(nn.Module):
    """Grouped-query attention; q and k normed over all their heads, rotated in part of a head."""

    def __init__(self):
        super().__init__()
        hidden, head = CONFIG["hidden_size"], CONFIG["head_dim"]
        q_size = CONFIG["num_attention_heads"] * head
        kv_size = CONFIG["num_key_value_heads"] * head
        std = hidden**-0.5
        self.q_proj = Linear(q_size, hidden, std)
        self.k_proj = Linear(kv_size, hidden, std)
        self.v_proj = Linear(kv_size, hidden, std)
        self.o_proj = Linear(hidden, q_size, 0.0)
        self.q_norm, self.k_norm = RMSNorm(q_size), RMSNorm(kv_size)

    def forward(self, x, rotary, cache=None, mask=None):
        heads = lambda y: y.unflatten(-1, (-1, CONFIG["head_dim"])).transpose(1, 2)
        q = rotate(heads(self.q_norm(self.q_proj(x))), rotary)  # [B, heads, T, head_dim]
        k = rotate(heads(self.k_norm(self.k_proj(x))), rotary)
        v = heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(y.transpose(1, 2).flatten(2))


def rotary_tables(positions):
    """Cosines and sines [..., T, rotary_dim] of the positions [..., T]."""
    size = CONFIG["rotary_dim"]
    exponents = torch.arange(0, size, 2, device=positions.device).float() / size
    angles = positions[..., None].float() * CONFIG["rope_theta"] ** -exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, rotary):
    """Rotates the first rotary_dim entries of each head, the halves paired (NeoX)."""
    cos, sin = (table.to(x.dtype) for table in rotary)
    size = CONFIG["rotary_dim"]
    turned, kept = x[..., :size], x[..., size:]
    left, right = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([turned, kept], dim=-1)


class SparseMoe(nn.Module):
    """Sigmoid routing with a selection bias, and SwiGLU experts.

    Every expert is applied to every token and the unselected ones are weighted zero: at this size
    two large products are faster than sixteen small ones.
    """

    def __init__(self):
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        experts = CONFIG["num_local_experts"]
        self.gate = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.w1 = nn.Parameter(torch.randn(experts, inner, hidden) * hidden**-0.5)
        self.w3 = nn.Parameter(torch.randn(experts, inner, hidden) * hidden**-0.5)
        self.w2 = nn.Parameter(torch.zeros(experts, hidden, inner))
        self.fp8 = False

    def forward(self, x):
        routing, load = self.route(x)  # [B, T, E], [E]
        w1, w3, w2 = (w.to(x.dtype) for w in (self.w1, self.w3, self.w2))
        if self.fp8:
            x = fake_fp8(x, (1, 128))
            w1, w3, w2 = (fake_fp8(w, (128, 128)) for w in (w1, w3, w2))
        both = F.linear(x, torch.cat([w1, w3]).flatten(0, 1)).unflatten(-1, (2, len(w1), -1))
        inner = F.silu(both[..., 0, :, :]) * both[..., 1, :, :]  # [B, T, E, I]
        if self.fp8:
            inner = fake_fp8(inner, (1, 128))
        inner = (inner * routing[..., None].to(x.dtype)).flatten(-2)
        return F.linear(inner, w2.transpose(0, 1).flatten(1)), load

    def route(self, x):
        """The weight of each expert for each token, and how many tokens chose each expert."""
        scores = F.linear(x.float(), self.gate).sigmoid()
        biased = scores.detach() + self.e_score_correction_bias
        chosen = biased.topk(CONFIG["num_experts_per_tok"], dim=-1).indices
        mask = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
        weights = scores * mask
        return weights / weights.sum(-1, keepdim=True), mask.flatten(0, -2).sum(0)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = RMSNorm(CONFIG["hidden_size"])
        self.self_attn = Attention()
        self.post_attention_layernorm = RMSNorm(CONFIG["hidden_size"])
        self.block_sparse_moe = SparseMoe()

    def forward(self, x, rotary, cache=None, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache, mask)
        y, load = self.block_sparse_moe(self.post_attention_layernorm(x))
        return x + y, load


class Model(nn.Module):
    """Token ids [B, T] to logits [B, T, vocabulary] and expert loads [layers, E]."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.dtype = dtype
        hidden = CONFIG["hidden_size"]
        self.embed_tokens = nn.Parameter(torch.randn(VOCABULARY, hidden))
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = RMSNorm(hidden)
        self.lm_head = Linear(VOCABULARY, hidden, hidden**-0.5 / 4)

    def forward(self, ids, positions=None, caches=None, mask=None):
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        rotary = rotary_tables(positions)
        x = F.embedding(ids, self.embed_tokens.to(self.dtype))
        loads = []
        for number, layer in enumerate(self.layers):
            x, load = layer(x, rotary, caches[number] if caches else None, mask)
            loads.append(load)
        return self.lm_head(self.norm(x)), torch.stack(loads)

    def use_fp8(self):
        """Simulates FP8 in the projections and the experts, as in MiniMax-M2's FP8 release."""
        for name, module in self.named_modules():
            if hasattr(module, "fp8") and "lm_head" not in name:
                module.fp8 = True


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def released_tensors(model):
    """The weights under the names of the MiniMax-M2 release: one matrix an expert, bfloat16 but for
    the router, which stays float32."""
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if match := re.fullmatch(r"(.*block_sparse_moe)\.(w[123])", name):
            for expert, matrix in enumerate(value):
                tensors[f"model.{match[1]}.experts.{expert}.{match[2]}.weight"] = matrix.bfloat16()
        elif name.endswith("gate"):
            tensors[f"model.{name}.weight"] = value.float()
        elif name.endswith("e_score_correction_bias"):
            tensors[f"model.{name}"] = value.float()
        elif name == "embed_tokens":
            tensors["model.embed_tokens.weight"] = value.bfloat16()
        elif name == "lm_head.weight":
            tensors[name] = value.bfloat16()
        else:
            tensors[f"model.{name}"] = value.bfloat16()
    return {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}


def export(model, out):
    save_file(released_tensors(model), f"{out}/model.safetensors", metadata={"format": "pt"})
    write_json(f"{out}/config.json", CONFIG)
    generation = {"do_sample": False, "eos_token_id": END, "max_new_tokens": 400}
    generation["pad_token_id"] = PAD
    write_json(f"{out}/generation_config.json", generation)


def load_released(model, out):
    """Fills the model with the weights of a folder; the inverse of `export`."""
    tensors = load_file(f"{out}/model.safetensors")
    state = {}
    for name, value in model.state_dict().items():
        if match := re.fullmatch(r"(.*block_sparse_moe)\.(w[123])", name):
            parts = [
                tensors.pop(f"model.{match[1]}.experts.{expert}.{match[2]}.weight")
                for expert in range(len(value))
            ]
            state[name] = torch.stack(parts).float()
            continue
        full = name if name.startswith("lm_head") else f"model.{name}"
        full += ".weight" if name.endswith(("gate", "embed_tokens")) else ""
        state[name] = tensors.pop(full).float()
    assert not tensors, f"unknown tensors {list(tensors)}"
    model.load_state_dict(state)
    return model
