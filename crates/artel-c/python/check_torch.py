"""Compares the C library with the same experts computed by torch in float64.

    python3 check_torch.py --kernels FILE.pack [--library libartel_c.so] [--shapes NAME ...]

Weights are random; both sides read the same stored numbers and round where the kernels round: FP8
operands in groups of 128, plain ones to bfloat16, the rows of experts to bfloat16. Fails where the
relative error (Frobenius norm) is above 5e-3, or where a replayed CUDA graph or packed pairs give
other bits. The weights of the router are bfloat16 numbers, which packing keeps.
"""

import argparse
import sys

import torch

from artel_moe import Experts

ERROR_MAX = 5e-3
BLOCK = 128
TOKENS_MAX = 256
TOKENS = (0, 1, 2, 7, 16, 64, 256, 300, 1000)

# Experts, top-k, hidden size, intermediate size, format.
SHAPES = {
    # What `own_stream build` makes a pack for, an example of artel-moe.
    "own-stream": (16, 4, 1024, 512, "fp8-block128"),
    "m2.5-tp2-fp8": (256, 8, 3072, 768, "fp8-block128"),
    "qwen3-30b-bf16": (128, 8, 2048, 768, "bf16"),
    "qwen3-30b-fp8": (128, 8, 2048, 768, "fp8-block128"),
}


def random_stack(experts, rows, columns, format):
    """Random matrices as the format stores them, and their scales if it has any."""
    if format == "bf16":
        numbers = torch.empty(experts, rows, columns, dtype=torch.bfloat16, device="cuda")
        return numbers.normal_(std=columns**-0.5), None
    numbers = torch.empty(experts, rows, columns, dtype=torch.uint8, device="cuda")
    for matrix in numbers:
        codes = torch.randn(rows, columns, device="cuda").mul_(64).to(torch.float8_e4m3fn)
        matrix.copy_(codes.view(torch.uint8))
    blocks = (experts, -(-rows // BLOCK), -(-columns // BLOCK))
    scales = torch.rand(blocks, device="cuda").add_(0.5).mul_(columns**-0.5 / 64)
    return numbers, scales


def matrix(numbers, scales, expert):
    """The float64 value of one stored matrix."""
    if scales is None:
        return numbers[expert].double()
    codes = numbers[expert].view(torch.float8_e4m3fn).double()
    wide = scales[expert].double().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return codes * wide[: codes.shape[0], : codes.shape[1]]


def operand(rows, scaled, least):
    """Rows as the products read them, in float64: FP8 in groups of 128 for weights with scales."""
    if not scaled:
        return rows.bfloat16().double()
    groups = rows.float().unflatten(1, (-1, BLOCK))
    # By a tensor: a division by a number becomes a product with its rounded inverse.
    scale = (groups.abs().amax(-1, keepdim=True) / groups.new_full((1,), 448)).clamp_min(least)
    codes = (groups / scale).to(torch.float8_e4m3fn)
    return (codes.double() * scale.double()).flatten(1)


def reference(hidden, topk_ids, topk_weights, w13, w13_scales, w2, w2_scales):
    """The experts in float64, one after the other."""
    out = torch.zeros(hidden.shape, dtype=torch.float64, device="cuda")
    scaled = w13_scales is not None
    x = operand(hidden, scaled, 1e-10 / 448)
    for expert in topk_ids.unique().tolist():
        if not 0 <= expert < w13.shape[0]:
            continue
        token, slot = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ matrix(w13, w13_scales, expert).T).chunk(2, 1)
        activated = operand(gate / (1 + (-gate).exp()) * up, scaled, 1 / (448 * 512))
        rows = (activated @ matrix(w2, w2_scales, expert).T).bfloat16()
        out.index_add_(0, token, rows.double() * topk_weights[token, slot].double()[:, None])
    return out


def random_batch(tokens, experts, top_k, hidden_size):
    """Hidden states, experts of each token and their weights; a few ids are none."""
    hidden = torch.randn(tokens, hidden_size, device="cuda").bfloat16()
    scores = torch.rand(tokens, experts, device="cuda")
    weights, ids = scores.topk(top_k)
    ids = ids.int()
    if tokens > 2:
        ids[tokens // 2, 0], ids[tokens // 3, top_k - 1] = -1, experts
    return hidden, ids, (weights / weights.sum(1, keepdim=True)).bfloat16().float()


def packed(ids, weights):
    """Ids and bfloat16 weights as pairs; an id that 16 bits cannot hold would be -1."""
    return ids << 16 | weights.bfloat16().view(torch.int16).int() & 0xFFFF


def graph_repeats(layer, batch, expected):
    """Whether the call recorded into a CUDA graph gives the same bits."""
    out, graph = torch.full_like(expected, float("nan")), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(*batch, out=out)
    graph.replay()
    torch.cuda.synchronize()
    return torch.equal(out.view(torch.int16), expected.view(torch.int16))


def check_shape(name, arguments):
    """One line for each batch size; gives back whether all is well."""
    experts, top_k, hidden_size, intermediate_size, format = SHAPES[name]
    w13, w13_scales = random_stack(experts, 2 * intermediate_size, hidden_size, format)
    w2, w2_scales = random_stack(experts, hidden_size, intermediate_size, format)
    layer, of_pairs = (
        Experts(
            w13, w2, top_k=top_k, tokens_max=TOKENS_MAX, format=format, w13_scales=w13_scales,
            w2_scales=w2_scales, kernel_packs=arguments.kernels, packed=packed,
            library=arguments.shared_object,
        )
        for packed in (False, True)
    )
    print(layer.plan, flush=True)
    well = True
    for tokens in TOKENS:
        batch = random_batch(tokens, experts, top_k, hidden_size)
        out = layer(*batch)
        other = torch.cuda.Stream()
        # The workspace is one: a call on another stream waits for the one before.
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            same = torch.equal(layer(*batch), out)
        torch.cuda.synchronize()
        same = same and torch.equal(of_pairs(batch[0], packed(*batch[1:])), out)
        if tokens:
            same = same and graph_repeats(layer, batch, out)
        expected = reference(*batch, w13, w13_scales, w2, w2_scales)
        norm = expected.norm().clamp_min(1e-30)
        error = ((out.double() - expected).norm() / norm).item()
        good = error <= ERROR_MAX and same
        well = well and good
        bits = "same" if same else "OTHER"
        print(f"{name:<16} {tokens:>6} {error:>10.1e} {bits:>10}  {'ok' if good else 'WRONG'}")
    layer.close()
    of_pairs.close()
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", action="append", default=[], help="a kernel pack")
    parser.add_argument("--library", dest="shared_object", help="libartel_c.so; beside this file otherwise")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["own-stream"])
    arguments = parser.parse_args()
    torch.manual_seed(1)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'shape':<16} {'tokens':>6} {'error':>10} {'repeated':>10}")
    results = [check_shape(name, arguments) for name in arguments.shapes]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
