"""Measures the model on held-out problems: greedy answers, exact match, its standard error.

    python3 evaluate.py --problems held_out.jsonl --model . [--fp8] [--float32]

This is the check that goes with training, in PyTorch; `artel eval arithmetic` is the one that
counts for the program.
"""

import argparse
import collections
import json
import math
import re

import torch

from model import END, PAD, Model, load_released
from text import load_tokenizer, read_problems


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
    model = load_released(Model(dtype), arguments.model).to(device).eval()
    if arguments.fp8:
        model.use_fp8()
    tokenizer = load_tokenizer(arguments.model)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", required=True, help="held-out problems as JSON lines")
    parser.add_argument("--model", required=True, help="the model folder")
    parser.add_argument("--num-problems", type=int, default=1000)
    parser.add_argument("--fp8", action="store_true", help="simulate FP8 weights and activations")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument("--show", type=int, default=3, help="failures to print")
    evaluate(parser.parse_args())
