"""Reads a checkpoint of `imp-train` in PyTorch and embeds with it: everything that a model is, in one page."""

import torch
import torch.nn.functional as F


def norm(x, p, at):
    return F.layer_norm(x, x.shape[-1:], p[f"{at}/scale"], p.get(f"{at}/bias"), 1e-6)


def dense(x, p, at):
    return x @ p[f"{at}/kernel"] + p.get(f"{at}/bias", 0)


def attention(x, p, at, heads, hidden):
    q, k, v = (dense(x, p, f"{at}/{name}").unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv")
    if f"{at}/q_norm/scale" in p:
        q, k = norm(q, p, f"{at}/q_norm"), norm(k, p, f"{at}/k_norm")
    return dense(F.scaled_dot_product_attention(q, k, v, hidden).transpose(1, 2).flatten(2), p, f"{at}/o")


def experts(x, p, at, capacity_factor):
    """Expert choice among the tokens of one example (`eval_groups = "example"`)."""
    probs, y = dense(x, p, f"{at}/router").softmax(-1), torch.zeros_like(x)
    gates, chosen = probs.topk(round(capacity_factor * x.shape[1] / probs.shape[-1]), dim=1)
    for e, (wi, wo) in enumerate(zip(p[f"{at}/experts/wi/kernel"], p[f"{at}/experts/wo/kernel"])):
        rows = chosen[..., e, None].expand(-1, -1, x.shape[-1])
        y = y.scatter_add(1, rows, gates[..., e, None] * (F.gelu(x.gather(1, rows) @ wi, approximate="tanh") @ wo))
    return y


def encode(x, p, heads, capacity_factor=1.0, mask=None):
    """Tokens `[n, tokens, width]` → features `[n, width]`; `mask` is 1 where a token is no padding."""
    mask = torch.ones(x.shape[:2]) if mask is None else mask
    hidden = (1 - mask[:, None, :, None] * mask[:, None, None, :]) * -1e10
    for at in (f"encoder/layer_{i}" for i in range(len(p)) if f"encoder/layer_{i}/norm_sa/scale" in p):
        x = x + attention(norm(x, p, f"{at}/norm_sa"), p, f"{at}/attn", heads, hidden)
        h = norm(x, p, f"{at}/norm_ffn")
        dense_ffn = lambda: dense(F.gelu(dense(h, p, f"{at}/ffn/wi"), approximate="tanh"), p, f"{at}/ffn/wo")
        x = x + (dense_ffn() if f"{at}/ffn/wi/kernel" in p else experts(h, p, f"{at}/moe", capacity_factor))
    return (norm(x, p, "encoder/final_norm") * mask[..., None]).sum(1) / (mask.sum(1, keepdim=True) + 1e-6)


def positions(p, stream, grid):
    """One table an axis; a grid of `n` reads row `floor(i * table / n)`."""
    axes = [(f"{stream}/pos_{a}/embedding", n) for a, n in grid]
    rows = torch.cartesian_prod(*(torch.arange(n) * len(p[name]) // n for name, n in axes)).reshape(-1, len(axes))
    return norm(sum(p[name][rows[:, i]] for i, (name, _) in enumerate(axes)), p, f"{stream}/pos_norm")


def common(features, p, stream, target):
    x = dense(features, p, f"{stream}/post")
    x = dense(F.gelu(dense(x, p, f"{stream}/to_{target}/wi"), approximate="tanh"), p, f"{stream}/to_{target}/wo")
    x = norm(x, p, f"{stream}/to_{target}/norm")
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


def embed_text(ids, p, heads, target="vision", capacity_factor=1.0):
    """Token ids `[n, tokens]`, 0 is padding → unit vectors."""
    at = norm(p["text/pos_t/embedding"][: ids.shape[1]], p, "text/pos_norm")
    x = dense(p["text/embed/embedding"][ids] + at, p, "text/pre")
    return common(encode(x, p, heads, capacity_factor, (ids != 0).float()), p, "text", target)


def embed_images(pixels, p, heads, tube=(4, 16, 16), capacity_factor=1.0):
    """u8 `[n, height, width, 3]` → unit vectors; a picture is a clip of equal frames."""
    (t, h, w), (n, height, width, _) = tube, pixels.shape
    x = (pixels.float() / 127.5 - 1).reshape(n, 1, height // h, h, width // w, w, 3).expand(-1, t, -1, -1, -1, -1, -1)
    x = x.permute(0, 2, 4, 1, 3, 5, 6).reshape(n, height // h * (width // w), -1)
    at = positions(p, "vision", [("t", 1), ("h", height // h), ("w", width // w)])
    return common(encode(dense(dense(x, p, "vision/embed") + at, p, "vision/pre"), p, heads, capacity_factor), p, "vision", "text")
