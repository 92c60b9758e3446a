"""Tensor-parallel layers, and how each says which rows or columns of the checkpoint it holds.

Legend: `raysgl.kernels.batch`; I input features, O output features of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from raysgl.distributed import TPGroup
from raysgl.kernels.argmax import MOST_ROWS, argmax, argmax_of_ranks
from raysgl.kernels.embedding import embed_part
from raysgl.kernels.linear import folded_linear
from raysgl.kernels.norm import add_rms_norm, rms_norm
from raysgl.kernels.sent_sums import SentPart
from raysgl.kernels.sum_ranks import most_rows, sum_ranks, takes

Part = torch.Tensor | SentPart
"""What a rank adds to a sum over all: the part itself, or one on its way to the other rank."""


@dataclass(frozen=True)
class Build:
    """What every layer is made with."""

    tp: TPGroup
    dtype: torch.dtype
    device: torch.device

    def parameter(self, *shape: int) -> nn.Parameter:
        """Uninitialised: the loader fills it."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)


@dataclass(frozen=True)
class Piece:
    """A tensor of the checkpoint (`name`, of `shape`) and where this rank keeps its part.

    `target` is a view of a parameter; it takes [start, start + length) of the tensor along `dim`.
    """

    name: str
    shape: tuple[int, ...]
    target: torch.Tensor
    dim: int
    start: int
    length: int


def whole(name: str, target: torch.Tensor) -> Piece:
    """Every rank holds all of it."""
    return Piece(name, tuple(target.shape), target, 0, 0, target.shape[0])


@dataclass(frozen=True)
class Rows:
    """One of the checkpoint's matrices that a ColumnLinear joins: its name, its rows, and this rank's part of them."""

    name: str
    total: int
    start: int
    length: int

    @staticmethod
    def split(name: str, total: int, tp: TPGroup) -> Rows:
        length = total // tp.size
        return Rows(name, total, tp.rank * length, length)

    @staticmethod
    def heads(name: str, num_heads: int, head_dim: int, tp: TPGroup) -> Rows:
        """Split by heads; with fewer heads than ranks, neighbouring ranks hold the same head."""
        if num_heads >= tp.size:
            return Rows.split(name, num_heads * head_dim, tp)
        return Rows(name, num_heads * head_dim, tp.rank * num_heads // tp.size * head_dim, head_dim)


class ColumnLinear(nn.Module):
    """Linear layers of one input, joined into one matrix and split by output over the ranks. No communication."""

    def __init__(self, build: Build, in_features: int, parts: Sequence[Rows], bias: bool = False):
        super().__init__()
        self.parts = parts
        rows = sum(part.length for part in parts)
        self.weight = build.parameter(rows, in_features)
        self.bias = build.parameter(rows) if bias else None

    def forward(self, x_TI: torch.Tensor, silu: bool = False) -> torch.Tensor:
        """silu: the two parts are gate and up, and silu(gate) * up comes out."""
        return folded_linear(x_TI, self.weight, bias_O=self.bias, silu=silu)

    def folded(self, stream_TI: torch.Tensor, norm: RMSNorm, silu: bool = False) -> torch.Tensor:
        """Of the normalised stream."""
        return folded_linear(stream_TI, self.weight, norm_I=norm.weight, eps=norm.eps, bias_O=self.bias, silu=silu)

    def pieces(self, path: str) -> Iterator[Piece]:
        parent = path.rpartition(".")[0]
        offset = 0
        for part in self.parts:
            target = self.weight[offset : offset + part.length]
            shape = (part.total, self.weight.shape[1])
            yield Piece(f"{parent}.{part.name}.weight", shape, target, 0, part.start, part.length)
            if self.bias is not None:
                target = self.bias[offset : offset + part.length]
                yield Piece(f"{parent}.{part.name}.bias", (part.total,), target, 0, part.start, part.length)
            offset += part.length


class RowLinear(nn.Module):
    """A linear layer split by input over the ranks: each has a part of the sum."""

    def __init__(self, build: Build, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.tp = build.tp
        self.weight = build.parameter(out_features, in_features // build.tp.size)
        self.bias = build.parameter(out_features) if bias else None

    def forward(self, x_TI: torch.Tensor) -> Part:
        """This rank's part: `RMSNorm.after_sum` takes it."""
        # The bias must enter the sum once.
        bias_O = self.bias if self.tp.rank == 0 else None
        if not self._sends(len(x_TI)):
            return folded_linear(x_TI, self.weight, bias_O=bias_O)

        def product(begin: int, end: int, out_TO: torch.Tensor) -> None:
            torch.mm(x_TI[begin:end], self.weight.t(), out=out_TO)
            if bias_O is not None:
                out_TO.add_(bias_O)

        return self.tp.sent.begin(len(x_TI), len(self.weight), x_TI.dtype, product)

    def _sends(self, rows: int) -> bool:
        """Whether the sum is long enough to be hidden. Not where a graph is made: sums are counted on the host."""
        if self.tp.sent is None or not most_rows(2, len(self.weight)) < rows <= self.tp.sent.rows:
            return False
        return not (self.weight.is_cuda and torch.cuda.is_current_stream_capturing())

    def folded(self, x_TI: torch.Tensor, stream_TD: torch.Tensor) -> None:
        """Add the result to the stream. Of one rank alone."""
        folded_linear(x_TI, self.weight, bias_O=self.bias, residual_TO=stream_TD)

    def pieces(self, path: str) -> Iterator[Piece]:
        out_features, length = self.weight.shape
        shape = (out_features, length * self.tp.size)
        yield Piece(f"{path}.weight", shape, self.weight, 1, self.tp.rank * length, length)
        if self.bias is not None:
            yield whole(f"{path}.bias", self.bias)


class VocabEmbedding(nn.Module):
    """Token embeddings, split by vocabulary; as `logits`, the output layer. Ranks hold equal parts, the last one padded."""

    def __init__(self, build: Build, vocab_size: int, hidden_size: int):
        super().__init__()
        self.tp = build.tp
        self.vocab_size = vocab_size
        self.rows = -(-vocab_size // build.tp.size)
        self.first = build.tp.rank * self.rows
        self.weight = build.parameter(self.rows, hidden_size)

    def forward(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        if self.tp.size == 1:
            return F.embedding(token_ids_T, self.weight)
        out_TD = embed_part(token_ids_T, self.weight, self.first)
        return sum_ranks(out_TD, self.tp.peers) if takes(out_TD, self.tp.peers) else self.tp.all_reduce(out_TD)

    def logits_part(self, hidden_LD: torch.Tensor) -> torch.Tensor:
        """Logits of this rank's part of the vocabulary and of its padding, in the model's dtype."""
        return folded_linear(hidden_LD, self.weight)

    def join(self, part_LV: torch.Tensor) -> torch.Tensor:
        """What the ranks have from `logits_part`: [L, vocab_size] on every rank."""
        return self.tp.all_gather(part_LV)[:, : self.vocab_size]

    def argmax(self, part_LV: torch.Tensor) -> torch.Tensor:
        """Of what the ranks have from `logits_part`, without joining it: int64 [L] on every rank."""
        if self.tp.size == 1:
            return argmax(part_LV)
        own = max(0, min(self.rows, self.vocab_size - self.first))
        if self.tp.winners is not None and len(part_LV) <= MOST_ROWS:
            return argmax_of_ranks(part_LV[:, :own], self.first, self.tp.winners)
        own_LV = part_LV[:, : max(1, own)]
        token_L1 = argmax(own_LV).unsqueeze(1)
        best_L1 = own_LV.gather(1, token_L1).float()
        if not own:
            best_L1.fill_(float("-inf"))
        # float32 has all integers up to 2^24, more than any vocabulary.
        said_LR2 = self.tp.all_gather(torch.cat((best_L1, (token_L1 + self.first).float()), 1)).view(-1, self.tp.size, 2)
        winner_L1 = argmax(said_LR2[..., 0].contiguous()).unsqueeze(1)
        return said_LR2[..., 1].gather(1, winner_L1).squeeze(1).long()

    def pieces(self, path: str) -> Iterator[Piece]:
        length = max(0, min(self.rows, self.vocab_size - self.first))
        self.weight[length:].zero_()
        shape = (self.vocab_size, self.weight.shape[1])
        yield Piece(f"{path}.weight", shape, self.weight[:length], 0, min(self.first, self.vocab_size), length)


class RMSNorm(nn.Module):
    """See `raysgl.kernels.norm`. Every rank holds the whole weight."""

    def __init__(self, build: Build, size: int, eps: float):
        super().__init__()
        self.tp = build.tp
        self.eps = eps
        self.weight = build.parameter(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def after_sum(
        self, part_TD: Part, residual_TD: torch.Tensor, next_weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the sum of all ranks' parts to the residual in place; returns (that normalised, that). All ranks must take part.

        next_weight: of the linear layer that comes next, which may be read ahead.
        """
        if isinstance(part_TD, SentPart):
            return part_TD.add_rms_norm(residual_TD, self.weight, self.eps), residual_TD
        if takes(part_TD, self.tp.peers):
            return sum_ranks(part_TD, self.tp.peers, residual_TD, self.weight, self.eps, next_weight), residual_TD
        return add_rms_norm(self.tp.all_reduce(part_TD), residual_TD, self.weight, self.eps)

    def pieces(self, path: str) -> Iterator[Piece]:
        yield whole(f"{path}.weight", self.weight)


def checkpoint_table(model: nn.Module) -> dict[str, Piece]:
    """Checkpoint tensor name -> where it goes, for all of a model's layers. A tied weight appears once."""
    table: dict[str, Piece] = {}
    for path, module in model.named_modules():
        pieces = getattr(module, "pieces", None)
        if pieces is not None:
            table.update((piece.name, piece) for piece in pieces(path))
    return table
