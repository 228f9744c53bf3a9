"""Reads a checkpoint of `imp-train` in PyTorch: the encoder, dense or with expert choice, the heads, and sentences, in 30 lines of code."""

import torch
import torch.nn.functional as F


def dense(x, p, at):
    return x @ p[f"{at}/kernel"] + p.get(f"{at}/bias", 0)


def norm(x, p, at):  # The identity where a model has no such LayerNorm.
    return F.layer_norm(x, x.shape[-1:], p[f"{at}/scale"], p.get(f"{at}/bias"), 1e-6) if f"{at}/scale" in p else x


def mlp(x, p, at):
    return dense(F.gelu(dense(x, p, f"{at}/wi"), approximate="tanh"), p, f"{at}/wo")


def attention(x, p, at, heads, mask):
    q, k, v = (norm(dense(x, p, f"{at}/{i}").unflatten(-1, (heads, -1)), p, f"{at}/{i}_norm").transpose(1, 2) for i in "qkv")
    return dense(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2), p, f"{at}/o")


def experts(x, p, at, capacity_factor):  # Those of one example choose: `eval_groups = "example"`.
    probs, wi, wo = dense(x, p, f"{at}/router").softmax(-1), p[f"{at}/experts/wi/kernel"], p[f"{at}/experts/wo/kernel"]
    gates, rows = probs.topk(round(capacity_factor * x.shape[1] / len(wi)), dim=1)
    taken = F.one_hot(rows, x.shape[1]).float()  # [example, rank, expert, token]
    hidden = F.gelu(torch.einsum("nret,ntd,edf->nref", taken, x, wi), approximate="tanh")
    return torch.einsum("nret,nre,nref,efd->ntd", taken, gates, hidden, wo)


def embed(x, p, stream, target, mask, heads, capacity_factor=1.0):  # Tokens with their positions, 0 at padding → unit vectors.
    x, hidden = dense(x, p, f"{stream}/pre"), (mask[:, None, :, None] * mask[:, None, None] - 1) * 1e10
    for at in (f"encoder/layer_{i}" for i in range(len(p)) if f"encoder/layer_{i}/norm_sa/scale" in p):
        x = x + attention(norm(x, p, f"{at}/norm_sa"), p, f"{at}/attn", heads, hidden)
        h = norm(x, p, f"{at}/norm_ffn")
        x = x + (mlp(h, p, f"{at}/ffn") if f"{at}/ffn/wi/kernel" in p else experts(h, p, f"{at}/moe", capacity_factor))
    x = (norm(x, p, "encoder/final_norm") * mask[..., None]).sum(1) / (mask.sum(1, keepdim=True) + 1e-6)
    x = mlp(dense(x, p, f"{stream}/post"), p, f"{stream}/to_{target}")
    return F.normalize(norm(x, p, f"{stream}/to_{target}/norm"), dim=-1)


def embed_text(ids, p, heads, target="vision"):  # Token ids [n, tokens], 0 is padding.
    x = p["text/embed/embedding"][ids] + norm(p["text/pos_t/embedding"][: ids.shape[1]], p, "text/pos_norm")
    return embed(x, p, "text", target, (ids != 0).float(), heads)
