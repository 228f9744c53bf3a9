"""Vectors of `imp-train embed` against those that PyTorch makes of the same checkpoint, ids and pixels: equal to 1e-5."""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file

from imp_torch import dense, embed, embed_text, norm

HEADS, TUBE, SIDE, N_TEXT = 4, (4, 8, 8), 64, 8


def main(store: Path, run: Path, embeddings: Path):
    checkpoint = max(run.glob("checkpoints/*/model.safetensors"))
    p = load_file(checkpoint)
    assert any("/moe/router/" in name for name in p) and any("/ffn/wi/" in name for name in p), "both kinds of block"
    rows = pq.read_table(embeddings).to_pylist()
    shards = [pq.read_table(shard) for shard in (store / "world-image/shards").glob("*.parquet")]
    records = pa.concat_tables(shards, promote_options="permissive").to_pylist()
    ids = {caption: tokens for r in records for caption, tokens in zip(r["captions"], r["tokens"])}
    media = {r["key"]: r["image"]["bytes"] for r in records}

    texts = [row for row in rows if row["stream"] == "text"]
    batch = [(ids[row["text"]][:N_TEXT] + [0] * N_TEXT)[:N_TEXT] for row in texts]
    compare("text", embed_text(torch.tensor(batch), p, HEADS), texts)

    pictures = [(row, np.asarray(Image.open(io.BytesIO(media[row["key"]])).convert("RGB"))) for row in rows if row["stream"] == "vision"]
    pictures = [(row, pixels) for row, pixels in pictures if pixels.shape == (SIDE, SIDE, 3)]
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in pictures]))
    tokens = tokens_of(pixels, p)
    got = embed(tokens, p, "vision", "text", torch.ones(tokens.shape[:2]), HEADS)
    compare("vision", got, [row for row, _ in pictures])


def tokens_of(pixels, p):
    """u8 `[n, height, width, 3]` → tokens of tubes `[n, tokens, width]`; a picture is a clip of equal frames, one tube long."""
    x = (pixels / 127.5 - 1).unfold(1, TUBE[1], TUBE[1]).unfold(2, TUBE[2], TUBE[2]).movedim(3, -1)
    rows, columns = x.shape[1:3]
    t, h, w = (p[f"vision/pos_{axis}/embedding"] for axis in "thw")
    h, w = h[torch.arange(rows) * len(h) // rows], w[torch.arange(columns) * len(w) // columns]
    at = norm((t[0] + h[:, None] + w).flatten(0, 1), p, "vision/pos_norm")
    return dense(x.flatten(3).flatten(1, 2).repeat(1, 1, TUBE[0]), p, "vision/embed") + at


def compare(what, got, rows):
    want = torch.tensor([row["embedding"] for row in rows])
    assert len(rows) >= 4 and want.std(0).max() > 1e-3, "vectors that differ from each other"
    worst = (got - want).abs().max().item()
    print(f"{what}: {len(rows)} vectors, greatest difference {worst:.1e}")
    assert worst < 1e-5, what


if __name__ == "__main__":
    with torch.inference_mode():
        main(*map(Path, sys.argv[1:4]))
