"""The chat format, the tokenizer, and problems packed into rows of tokens."""

import functools
import json
import multiprocessing
import os
import time

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model import CONFIG, END, PAD, SPECIAL_TOKENS, VOCABULARY, write_json

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


def read_problems(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def render(problem):
    """What the chat template makes of a question and its answer."""
    return f"<|user|>{problem['question']}<|assistant|>{problem['solution']}<|end|>"


def make_tokenizer(data, out):
    """Byte-level BPE in which every digit is a token of its own."""
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
    problems = read_problems(f"{data}/00000.jsonl")[:100_000]
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
