"""Trains tally, a small mixture of experts of MiniMax-M2's architecture, on arithmetic word problems.

Everything in this folder but the README comes out of three commands. DATA holds the training
problems as JSON lines, one file a seed (README.md says how they are written):

    python3 train.py tokenizer --data DATA --out models/tally
    python3 train.py train     --data DATA --out models/tally --steps 24000
    python3 train.py evaluate  --problems held_out.jsonl --out models/tally [--fp8]

Needs torch, safetensors and tokenizers; a GPU for training. Training waits for the files of DATA in
the order of their names, so they may still be written while it runs. With --stop-after it stops
early and the same command goes on from --checkpoint.
"""

import argparse
import collections
import functools
import glob
import json
import math
import multiprocessing
import os
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SEED = 20260101
VOCABULARY = 1024
PAD, END, SYSTEM, USER, ASSISTANT = range(5)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message.role + '|>' + (message.content | trim) -}}"
    "{%- if message.role == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
# One conversation of sixteen starts with one of these, so that a system message does no harm.
SYSTEM_MESSAGES = [
    "You are a helpful assistant.",
    "You are tally, a model that solves arithmetic word problems.",
    "Solve the problem step by step.",
    "Answer the question. Show your work.",
    "You are a careful math tutor. Think step by step and end with the answer.",
    "Be brief and correct.",
]
ROW_TOKENS = 512  # a row is one conversation of several problems

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


# ---- Text ----------------------------------------------------------------------------------------


def read_problems(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def render(problem):
    """What the chat template makes of a question and its answer."""
    return f"<|user|>{problem['question']}<|assistant|>{problem['solution']}<|end|>"


def make_tokenizer(data, out):
    """Byte-level BPE in which every digit is a token of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    problems = read_problems(sorted(glob.glob(f"{data}/*.jsonl"))[0])[:100_000]
    texts = SYSTEM_MESSAGES * 20
    texts += [problem[key] for problem in problems for key in ("question", "solution")]
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.save(f"{out}/tokenizer.json")
    write_json(
        f"{out}/tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(i): {"content": token, "special": True}
                for i, token in enumerate(SPECIAL_TOKENS)
            },
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": SPECIAL_TOKENS[END],
            "model_max_length": CONFIG["max_position_embeddings"],
            "pad_token": SPECIAL_TOKENS[PAD],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def load_tokenizer(out):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(f"{out}/tokenizer.json")


def pack_file(path, out):
    """The problems of a file as rows [N, ROW_TOKENS + 1] of token ids.

    A row is a conversation from its start: problem after problem until the row is full. The problem
    that no longer fits is cut off and opens the next row.
    """
    tokenizer = load_tokenizer(out)
    texts = [render(problem) for problem in read_problems(wait_for(path))]
    tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    systems = tokenizer.encode_batch([f"<|system|>{text}" for text in SYSTEM_MESSAGES])
    rows, row = [], []
    for ids in tokens:
        row += ids
        if len(row) > ROW_TOKENS:
            rows.append(row[: ROW_TOKENS + 1])
            number = len(rows)
            row = list(systems[number // 16 % len(systems)].ids) if number % 16 == 0 else []
            row += ids
    return np.array(rows, dtype=np.uint16)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.2)
    return path


def packed_files(arguments, number):
    """The packed files from `number` on and round again, made ahead by other processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    paths = [f"{arguments.data}/{i:05}.jsonl" for i in range(arguments.files)]
    pack = functools.partial(pack_file, out=arguments.out)
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        while True:
            start = number % arguments.files
            yield from pool.imap(pack, paths[start:])
            number += arguments.files - start


# ---- Model ---------------------------------------------------------------------------------------


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


# ---- Training ------------------------------------------------------------------------------------


def solution_loss(model, rows):
    """Mean cross-entropy of the solutions' tokens, and the expert loads."""
    ids, targets = rows[:, :-1], rows[:, 1:]
    inside = (ids == ASSISTANT).int().cumsum(-1) > (ids == END).int().cumsum(-1)
    logits, loads = model(ids)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (losses * inside.flatten()).sum() / inside.sum(), loads


def orthogonalised(g):
    """Newton and Schulz's iteration towards the nearest orthogonal matrix (Jordan et al. 2024)."""
    x = g.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised; parameters of one shape are handled at once."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.02):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.orthogonalised = torch.compile(orthogonalised)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape[-2:], []).append(p)
            for (rows, columns), same in by_shape.items():
                grads = torch.cat([p.grad.reshape(-1, rows, columns) for p in same])
                state = self.state[same[0]]
                buffer = state.setdefault("momentum", torch.zeros_like(grads))
                buffer.lerp_(grads, 1 - group["momentum"])
                update = self.orthogonalised(grads.lerp(buffer, group["momentum"]))
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                parts = update.split([p.numel() // (rows * columns) for p in same])
                for p, part in zip(same, parts):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(part.view(p.shape).to(p.dtype), alpha=-rate)


def make_optimizers(model, arguments):
    matrices, others = [], []
    for name, p in model.named_parameters():
        is_matrix = p.ndim >= 2 and not any(key in name for key in ("embed", "lm_head", "gate"))
        (matrices if is_matrix else others).append(p)
    adam = torch.optim.AdamW(
        others, lr=arguments.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    return [Muon(matrices, lr=arguments.muon_lr), adam]


def rate_at(step, steps):
    """Share of the peak rate: a short warm-up, a plateau, then down to zero in a straight line."""
    warm_up, decay_from = 200, 0.35 * steps
    return min(1.0, (step + 1) / warm_up, (steps - step) / (steps - decay_from))


def train(arguments):
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    model = Model().cuda()
    optimizers = make_optimizers(model, arguments)
    state = {"step": 0, "files": 0, "seconds": 0.0}
    if arguments.checkpoint and os.path.exists(arguments.checkpoint):
        state = restore(arguments.checkpoint, model, optimizers)
    loss_of = torch.compile(solution_loss)
    files = packed_files(arguments, state["files"])
    start, total_load = time.time(), 0
    while state["step"] < arguments.steps and time.time() - start < arguments.stop_after:
        rows = torch.from_numpy(next(files).astype(np.int32)).cuda()
        state["files"] += 1
        rows = rows[torch.randperm(len(rows), device="cuda")].long()
        for batch in rows.split(arguments.batch)[:-1]:
            share = rate_at(state["step"], arguments.steps)
            loss, load = loss_of(model, batch)
            loss.backward()
            apply(optimizers, share)
            balance(model, load, 2e-3 * share)
            total_load = 0.99 * total_load + load
            state["step"] += 1
            if state["step"] % 250 == 0:
                report(state, loss, total_load, start)
            if state["step"] == arguments.steps or time.time() - start > arguments.stop_after:
                break
    state["seconds"] += time.time() - start
    print("trained", state, "balance of the experts by layer", entropy(total_load))
    if arguments.checkpoint:
        save(arguments.checkpoint, model, optimizers, state)
    export(model, arguments.out)
    files.close()


def apply(optimizers, share):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            peak = group.setdefault("peak", group["lr"])
            group["lr"] = peak * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def balance(model, load, rate):
    """Moves the selection bias against the load (Wang et al. 2024, arXiv:2408.15664)."""
    for layer, counts in zip(model.layers, load):
        bias = layer.block_sparse_moe.e_score_correction_bias
        bias.add_((counts.mean() - counts).sign(), alpha=rate)


def entropy(load):
    """Entropy of each layer's expert load over its maximum: 1 is perfect balance."""
    p = load / load.sum(-1, keepdim=True)
    return [round(e, 4) for e in (-(p * p.log()).sum(-1) / math.log(p.shape[-1])).tolist()]


def report(state, loss, load, start):
    torch.cuda.synchronize()
    print(
        f"step {state['step']} loss {loss.item():.4f} seconds {time.time() - start:.1f}"
        f" files {state['files']} balance {min(entropy(load))}",
        flush=True,
    )


def save(path, model, optimizers, state):
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "state": state}, path)


def restore(path, model, optimizers):
    saved = torch.load(path, weights_only=False)
    model.load_state_dict(saved["model"])
    for optimizer, optimizer_state in zip(optimizers, saved["optimizers"]):
        optimizer.load_state_dict(optimizer_state)
    return saved["state"]


# ---- The model folder ----------------------------------------------------------------------------


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def released_tensors(model):
    """The weights under the names of the MiniMax-M2 release: one matrix an expert, bfloat16 but for
    the router, which stays float32."""
    tensors = {}
    for name, value in {**model.state_dict()}.items():
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
    from safetensors.torch import save_file

    save_file(released_tensors(model), f"{out}/model.safetensors", metadata={"format": "pt"})
    write_json(f"{out}/config.json", CONFIG)
    generation = {"do_sample": False, "eos_token_id": END, "max_new_tokens": 400, "pad_token_id": PAD}
    write_json(f"{out}/generation_config.json", generation)


def load_released(model, out):
    """Fills the model with the weights of a folder; the inverse of `export`."""
    from safetensors.torch import load_file

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


# ---- Evaluation ----------------------------------------------------------------------------------


class Cache:
    """Keys and values of the tokens so far, of one layer."""

    def __init__(self):
        self.kv = None

    def append(self, k, v):
        self.kv = (k, v) if self.kv is None else tuple(
            torch.cat([old, new], dim=2) for old, new in zip(self.kv, (k, v))
        )
        return self.kv


@torch.no_grad()
def generate(model, prompts, tokens_max=320):
    """Greedy continuations of the prompts, decoded side by side, padded on the left."""
    device = model.embed_tokens.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts], device=device)
    padding = torch.tensor([longest - len(p) for p in prompts], device=device)[:, None]
    caches = [Cache() for _ in model.layers]
    replies, done = [], torch.zeros(len(prompts), dtype=torch.bool, device=device)
    step, first = ids, 0
    while len(replies) < tokens_max and not done.all():
        columns = torch.arange(first + step.shape[1], device=device)
        rows = columns[first:]
        visible = (columns[None, :] <= rows[:, None]) & (columns >= padding)[:, None, :]
        visible |= columns[None, :] == rows[:, None]  # padding sees itself, so that no row is empty
        positions = (rows - padding).clamp(min=0)[:, None]
        logits, _ = model(step, positions, caches, visible[:, None])
        chosen = logits[:, -1].argmax(-1).masked_fill(done, PAD)
        done |= chosen == END
        replies.append(chosen)
        step, first = chosen[:, None], first + step.shape[1]
    replies = torch.stack(replies, dim=1).tolist()
    return [reply[: reply.index(END)] if END in reply else reply for reply in replies]


def final_answer(text):
    match = re.search(r"####\s*\$?(-?[\d,]+)(?!.*####)", text, re.DOTALL)
    return match and match[1].replace(",", "")


def evaluate(arguments):
    """Greedy exact match on problems, with its standard error, by number of steps too."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if arguments.float32 else torch.bfloat16
    model = load_released(Model(dtype), arguments.out).to(device).eval()
    if arguments.fp8:
        model.use_fp8()
    tokenizer = load_tokenizer(arguments.out)
    problems = read_problems(arguments.problems)[: arguments.num_problems]
    prompts = [tokenizer.encode(f"<|user|>{p['question']}<|assistant|>").ids for p in problems]
    replies = [tokenizer.decode(reply) for reply in generate(model, prompts)]
    by_steps, wrong = collections.defaultdict(list), []
    for problem, reply in zip(problems, replies):
        right = final_answer(reply) == final_answer(problem["solution"])
        by_steps[problem["solution"].count("<<")].append(right)
        wrong += [] if right else [{**problem, "reply": reply}]
    share = 1 - len(wrong) / len(problems)
    error = math.sqrt(share * (1 - share) / len(problems))
    steps = {n: f"{sum(rights)}/{len(rights)}" for n, rights in sorted(by_steps.items())}
    kind = "fp8" if arguments.fp8 else str(dtype)
    print(f"{kind}: exact match {share:.4f} +- {error:.4f} on {len(problems)}; by steps {steps}")
    for failure in wrong[: arguments.show]:
        print(json.dumps(failure, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["tokenizer", "train", "evaluate"])
    parser.add_argument("--out", required=True, help="the model folder")
    parser.add_argument("--data", help="folder of 00000.jsonl, 00001.jsonl, …")
    parser.add_argument("--files", type=int, default=120, help="how many files DATA will have")
    parser.add_argument("--workers", type=int, default=10, help="processes that pack files")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256, help="rows a step")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--checkpoint", help="where to stop and resume")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds")
    parser.add_argument("--problems", help="held-out problems as JSON lines")
    parser.add_argument("--num-problems", type=int, default=1000)
    parser.add_argument("--fp8", action="store_true", help="simulate FP8 weights and activations")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--show", type=int, default=3, help="failures to print")
    arguments = parser.parse_args()
    if arguments.command == "tokenizer":
        make_tokenizer(arguments.data, arguments.out)
    elif arguments.command == "train":
        train(arguments)
    else:
        evaluate(arguments)


if __name__ == "__main__":
    main()
