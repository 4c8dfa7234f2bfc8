"""Writes src/rope/golden.rs: rotary frequencies and tables as `transformers` computes them.

Run from the crate's folder with transformers 5.23 and torch installed: python golden/rope.py
"""

import torch
from transformers import LlamaConfig, __version__
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

YARN = {"rope_type": "yarn", "original_max_position_embeddings": 4096}
CASES = {
    "DEFAULT": (12, {"rope_type": "default", "rope_theta": 1e4}),
    "PARTIAL": (64, {"rope_type": "default", "rope_theta": 5e6}),
    "LINEAR": (16, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}),
    "LLAMA3": (
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
    "YARN_GPT_OSS": (
        64,
        YARN | {"rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    ),
    "YARN_DEEPSEEK": (
        64,
        YARN | {"rope_theta": 1e4, "factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.707},
    ),
    "YARN_PLAIN": (32, YARN | {"rope_theta": 1e6, "factor": 4.0}),
    "YARN_EXPLICIT": (32, YARN | {"rope_theta": 1e6, "factor": 4.0, "attention_factor": 0.75}),
}
POSITIONS = [0, 1, 17, 4095, 131071]


def numbers(values):
    lines = [""]
    for value in values:
        text = f"{float(value):.9e}, "
        if len(lines[-1]) + len(text) > 92:
            lines.append("")
        lines[-1] += text
    return "".join(f"        {line.rstrip()}\n" for line in lines)


def case(name, dim, parameters):
    config = LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, max_position_embeddings=131072, rope_parameters=parameters
    )
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.tensor([POSITIONS]))
    half = dim // 2
    return (
        f"pub(super) const {name}: Golden = Golden {{\n"
        f"    attention_scaling: {rotary.attention_scaling:.9e},\n"
        f"    inverse_frequencies: &[\n{numbers(rotary.inv_freq)}    ],\n"
        f"    cos: &[\n{numbers(cos[0, :, :half].flatten())}    ],\n"
        f"    sin: &[\n{numbers(sin[0, :, :half].flatten())}    ],\n}};\n"
    )


assert set(p["rope_type"] for _, p in CASES.values()) - {"default"} <= set(ROPE_INIT_FUNCTIONS)
with open("src/rope/golden.rs", "w") as out:
    out.write(f"//! Written by golden/rope.py with transformers {__version__}; not edited by hand.\n\n")
    out.write("/// Positions of the tables.\n")
    out.write(f"pub(super) const POSITIONS: [usize; {len(POSITIONS)}] = {POSITIONS};\n\n")
    out.write(
        "/// What `transformers` has for one configuration; tables are `[positions, rotary_dim / 2]`.\n"
        "pub(super) struct Golden {\n    pub(super) attention_scaling: f32,\n"
        "    pub(super) inverse_frequencies: &'static [f32],\n    pub(super) cos: &'static [f32],\n"
        "    pub(super) sin: &'static [f32],\n}\n\n"
    )
    out.write("\n".join(case(name, *value) for name, value in CASES.items()))
