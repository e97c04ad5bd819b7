"""Small PyTorch nets for tests, exported and saved as users do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ROWS = torch.export.Dim("batch")


class Digits(torch.nn.Module):
    """x [N, 64] -> {"logits" [N, 10], "label" INT64 [N]}."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

    def forward(self, x: Any) -> Any:
        logits = self.net(x)
        return {"logits": logits, "label": logits.argmax(1)}


class Pair(torch.nn.Module):
    """a [N, T] and b [N, T], T free -> {"sum", "half" in bfloat16}, both [N, T]."""

    def forward(self, a: Any, b: Any) -> Any:
        return {"sum": a + b, "half": (a / 3).to(torch.bfloat16)}


class Picture(torch.nn.Module):
    """x [1, 3, 8, 8] -> [1, 4]; exported for one row at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            return self.norm(self.conv(x)).mean((2, 3))


class Table(torch.nn.Module):
    """i INT64 [N] -> [N, 2]; any i outside of 0 to 9 makes PyTorch refuse the whole pass."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 2)

    def forward(self, i: Any) -> Any:
        return self.table(i)


class Slow(torch.nn.Module):
    """x [N, 2] -> [N, 2] = x, after some ten milliseconds of work."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("much", torch.eye(512))

    def forward(self, x: Any) -> Any:
        much = self.much
        for _ in range(10):
            much = much @ much
        return (x * much[0, 0],)


def save(
    path: Path, net: torch.nn.Module, example: tuple[Any, ...], shapes: Any = None, *, train: bool = False
) -> Path:
    """Export and save; with `train`, as who forgot model.eval()."""
    program = torch.export.export(net.train(train), example, dynamic_shapes=shapes)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    return path


def digits(path: Path) -> tuple[Path, Digits]:
    net = Digits()
    return save(path, net, (torch.zeros(2, 64),), ({0: ROWS},)), net
