"""Feeds torch from a store: trains two small towers per medium for a few steps, stops, and resumes exactly.

    cargo demo                                         # makes runs/demo/store
    python loader/python/examples/feed_torch.py --config ops/configs/demo.toml

Trains `--steps` steps in one go, then again with a stop in the middle: model, optimizer and place in the corpora go through a
file, as a checkpoint does. Both must end with the same losses, to the last bit.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from imp_loader import Loader
from imp_loader.torch import ImpDataset
from torch import nn
from torch.utils.data import DataLoader

WIDTH = 64


class Towers(nn.Module):
    """A medium and its caption → points of one space. Sees whatever size a view has as 16 × 16."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.pictures = nn.Linear(3 * 16 * 16, WIDTH)
        self.sounds = nn.Linear(16 * 16, WIDTH)
        self.words = nn.EmbeddingBag(vocab_size, WIDTH, padding_idx=0)

    def loss(self, batch: dict) -> torch.Tensor:
        """Cross-entropy of each medium against all captions of the batch."""
        if "pixels" in batch:
            frames = batch["pixels"].float().div(255).mean(1)  # [n, height, width, 3]
            media = self.pictures(F.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2), 16).flatten(1))
        else:
            media = self.sounds(F.adaptive_avg_pool2d(batch["log_mel"], 16).flatten(1))
        scores = 10 * F.normalize(media) @ F.normalize(self.words(batch["text"])).T
        return F.cross_entropy(scores, torch.arange(len(scores)))


class Run:
    """Everything a run consists of."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(1)
        self.loader = Loader.from_run_file(args.config, store=args.store)
        self.dataset = ImpDataset(self.loader)
        self.towers = Towers(max(corpus["vocab_size"] for corpus in self.loader.corpora().values()))
        self.optimizer = torch.optim.AdamW(self.towers.parameters(), lr=3e-3)

    def train(self, n_steps: int) -> list[float]:
        losses = []
        # `batch_size=None`: the mixture's views say how large a batch is.
        for batch in DataLoader(self.dataset, batch_size=None):
            loss = self.towers.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            print(f"step {batch['step']:3} {batch['task']:12} view {batch['view']} {len(batch['text']):3} examples  loss {loss.item():.3f}")
            if len(losses) == n_steps:
                return losses
        return losses

    def save(self, path: Path) -> None:
        parts = {"towers": self.towers, "optimizer": self.optimizer, "data": self.dataset}
        torch.save({name: part.state_dict() for name, part in parts.items()}, path)

    def load(self, path: Path) -> None:
        saved = torch.load(path)
        self.towers.load_state_dict(saved["towers"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.dataset.load_state_dict(saved["data"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a run file; its [train.mixture] and [train.loader] are read")
    parser.add_argument("--store", help="in place of the run file's")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()

    whole = Run(args)
    wanted = whole.train(args.steps)
    whole.loader.close()

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        first = Run(args)
        losses = first.train(args.steps // 2)
        first.save(checkpoint)
        first.loader.close()

        second = Run(args)
        second.load(checkpoint)
        losses += second.train(args.steps - len(losses))
        second.loader.close()
    assert losses == wanted, "the resumed run is another run"
    print(f"resumed after {args.steps // 2} steps with the same {args.steps} losses")


if __name__ == "__main__":
    main()
