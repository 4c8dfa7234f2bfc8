"""Writes golden/rope.txt: rotary frequencies and tables as `transformers` computes them.

Run from the crate's folder with transformers 5.23 and torch installed: python golden/rope.py
"""

import torch
from transformers import LlamaConfig, __version__
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

YARN = {"rope_type": "yarn", "original_max_position_embeddings": 4096}
CASES = {
    "default": (12, {"rope_type": "default", "rope_theta": 1e4}),
    "partial": (64, {"rope_type": "default", "rope_theta": 5e6}),
    "linear": (16, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}),
    "llama3": (
        64,
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "yarn_gpt_oss": (
        64,
        YARN | {"rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    ),
    "yarn_deepseek": (
        64,
        YARN | {"rope_theta": 1e4, "factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.707},
    ),
    "yarn_plain": (32, YARN | {"rope_theta": 1e6, "factor": 4.0}),
    "yarn_explicit": (32, YARN | {"rope_theta": 1e6, "factor": 4.0, "attention_factor": 0.75}),
}
POSITIONS = [0, 1, 17, 4095, 131071]


def line(name, key, values):
    return f"{name} {key} " + " ".join(f"{float(value):.9g}" for value in values) + "\n"


def case(name, dim, parameters):
    config = LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, max_position_embeddings=131072, rope_parameters=parameters
    )
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.tensor([POSITIONS]))
    half = dim // 2
    return (
        line(name, "attention_scaling", [rotary.attention_scaling])
        + line(name, "inverse_frequencies", rotary.inv_freq)
        + line(name, "cos", cos[0, :, :half].flatten())
        + line(name, "sin", sin[0, :, :half].flatten())
    )


with open("golden/rope.txt", "w") as out:
    out.write(f"# Written by golden/rope.py with transformers {__version__}; tables are [positions, rotary_dim / 2].\n")
    out.write(line("all", "positions", POSITIONS))
    for name, value in CASES.items():
        out.write(case(name, *value))
