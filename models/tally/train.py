"""Trains tally, a small mixture of experts of MiniMax-M2's architecture, on word problems.

DATA is a folder of problems as JSON lines, 00000.jsonl, 00001.jsonl, …, each of another seed:

    for i in $(seq 0 129); do
      artel eval arithmetic --split training --seed $((1000 + i)) --num-problems 100000 \\
        --write DATA/$(printf %05d $i).jsonl
    done
    python3 train.py tokenizer --data DATA --out .
    python3 train.py train     --data DATA --out . --files 130 --steps 13750
    artel eval arithmetic --split held-out --seed 7 --num-problems 1000 --write held_out.jsonl
    python3 evaluate.py --problems held_out.jsonl --model . [--fp8]

Needs torch, safetensors and tokenizers, and a GPU unless you are very patient. A file may still be
unwritten when training starts; it is waited for, so write it elsewhere first and move it. With
--checkpoint and --stop-after, training stops early and the same command goes on later.
"""

import argparse
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

from model import ASSISTANT, END, Model, export
from text import make_tokenizer, packed_files

SEED = 20260101
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
    model = Model().to(DEVICE)
    optimizers = make_optimizers(model, arguments)
    state = {"step": 0, "files": 0, "seconds": 0.0}
    if arguments.checkpoint and os.path.exists(arguments.checkpoint):
        state = restore(arguments.checkpoint, model, optimizers)
    loss_of = torch.compile(solution_loss)
    files = packed_files(arguments, state["files"])
    start, total_load = time.time(), 0
    while state["step"] < arguments.steps and time.time() - start < arguments.stop_after:
        rows = torch.from_numpy(next(files).astype(np.int32)).to(DEVICE)
        state["files"] += 1
        rows = rows[torch.randperm(len(rows), device=DEVICE)].long()
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["tokenizer", "train"])
    parser.add_argument("--out", required=True, help="the model folder")
    parser.add_argument("--data", required=True, help="the folder of problems")
    parser.add_argument("--files", type=int, default=130, help="how many files DATA will have")
    parser.add_argument("--workers", type=int, default=10, help="processes that pack files")
    parser.add_argument("--steps", type=int, default=13_750)
    parser.add_argument("--batch", type=int, default=256, help="rows a step")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--checkpoint", help="where to stop and resume")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds")
    arguments = parser.parse_args()
    if arguments.command == "tokenizer":
        make_tokenizer(arguments.data, arguments.out)
    else:
        train(arguments)


if __name__ == "__main__":
    main()
