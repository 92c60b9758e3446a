"""Top-k, top-p and min-p as one number per row: the least logit that is kept. And the draw among what is kept.

Legend: L rows, V vocabulary, K candidates. `x_LV` are logits divided by the temperature, less the row's maximum, float32.

A token that ties with the last one kept is kept too: which of several equal logits comes first would depend on the sort, and so on
device and batch. Top-p is of the whole distribution, not of what top-k leaves (as in SGLang, where the two are joint): the
smallest set of most probable tokens with at least that mass.

Nothing here sorts a vocabulary. A few candidates nearly always hold the mass. Where they do not, or where asking whether they do
would make the host wait for the device, histograms find the threshold; it is the same number.
"""

from __future__ import annotations

import torch

TIERS = (128, 1024)
"""Candidates tried one after the other. On one core, 49152 logits: topk of 128 takes a quarter of the time of 1024."""
BLOCK = 256
"""Weights summed together before the draw looks for its block, then for its token."""
DIGITS = ((21, 11), (10, 11), (0, 10))
"""(shift, width) of the digits of a float's 32 bits, highest first."""
MASS_UNIT = 2.0**40
"""Masses of up to 2**22 tokens, none above 1, fit an int64 in these units."""
OFF = 2.0
"""top_p of rows without one: a mass that rounding never reaches."""


def thresholds(
    x_LV: torch.Tensor, total_L: torch.Tensor, top_p_L: torch.Tensor, top_k_L: torch.Tensor, max_top_k: int
) -> torch.Tensor:
    """Least x kept by top-k and top-p, for each row.

    total_L: sum of exp(x). top_p_L: `OFF` for none. top_k_L: V for none; `max_top_k` is the largest, known on the host.
    """
    vocab_size = x_LV.shape[1]
    if max_top_k <= TIERS[-1]:
        return _of_candidates(x_LV, total_L, top_p_L, top_k_L, min(max_top_k, vocab_size))[0]
    if x_LV.device.type != "cpu":  # asking whether the candidates suffice would make the host wait
        return _of_histograms(x_LV, top_p_L, top_k_L)
    found_L = torch.empty_like(total_L)
    rows_R: torch.Tensor | None = None
    left = (x_LV, total_L, top_p_L, top_k_L)
    for count in TIERS:
        if count >= vocab_size:
            break
        found_R, covered_R = _of_candidates(*left, count)
        found_L = found_R if rows_R is None else found_L.index_copy_(0, rows_R, found_R)
        open_R = (~covered_R).nonzero().flatten()
        if not len(open_R):
            return found_L
        left = tuple(tensor.index_select(0, open_R) for tensor in left)
        rows_R = open_R if rows_R is None else rows_R.index_select(0, open_R)
    found_R = _of_histograms(left[0], left[2], left[3])
    return found_R if rows_R is None else found_L.index_copy_(0, rows_R, found_R)


def _of_candidates(
    x_LV: torch.Tensor, total_L: torch.Tensor, top_p_L: torch.Tensor, top_k_L: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(thresholds, whether the `count` most probable tokens were enough to find them)."""
    values_LK = x_LV.topk(count, dim=-1).values
    mass_LK = (values_LK.exp() / total_L.unsqueeze(1)).cumsum(-1)
    top_p_L1 = top_p_L.unsqueeze(1)
    kept_L = torch.minimum(1 + (mass_LK[:, :-1] < top_p_L1).sum(-1), top_k_L)
    found_L = values_LK.gather(1, (kept_L - 1).clamp_(0, count - 1).unsqueeze(1)).squeeze(1)
    covered_L = (top_k_L <= count) | (mass_LK[:, -1] >= top_p_L)
    return found_L, covered_L


def _of_histograms(x_LV: torch.Tensor, top_p_L: torch.Tensor, top_k_L: torch.Tensor) -> torch.Tensor:
    """The largest value that still leaves top_k tokens, or top_p of the mass, at or above it.

    A radix selection over the bits of the floats: each pass counts tokens and mass by the next digit and goes on inside the digit
    where enough is reached. Masses are whole numbers, so that the order in which a GPU adds them cannot change the choice.
    """
    bits_LV = _key(x_LV).long() + 2**31
    masses_LV = (x_LV.exp() * MASS_UNIT).long()
    ones_LV = torch.ones_like(masses_LV)
    need_L1 = (top_p_L.double() * masses_LV.sum(-1)).long().unsqueeze(1)
    top_k_L1 = top_k_L.unsqueeze(1)
    # What lies outside of the digits chosen so far is counted, too, but in columns that are dropped (many: one would be fought over).
    spare_V = torch.arange(x_LV.shape[1], device=x_LV.device) % 64
    chosen_L1 = torch.zeros_like(top_k_L1)
    count_above_L1, mass_above_L1 = torch.zeros_like(top_k_L1), torch.zeros_like(top_k_L1)
    for shift, width in DIGITS:
        size = 1 << width
        digit_LV = torch.where(bits_LV >> (shift + width) == chosen_L1, (bits_LV >> shift) & (size - 1), spare_V + size)
        tables = torch.zeros(2, x_LV.shape[0], size + 64, dtype=torch.int64, device=x_LV.device)
        counts_LD = tables[0].scatter_add_(1, digit_LV, ones_LV)[:, :size]
        masses_LD = tables[1].scatter_add_(1, digit_LV, masses_LV)[:, :size]
        # Tokens and mass at or above each digit.
        count_LD = count_above_L1 + counts_LD.sum(-1, keepdim=True) - counts_LD.cumsum(-1) + counts_LD
        mass_LD = mass_above_L1 + masses_LD.sum(-1, keepdim=True) - masses_LD.cumsum(-1) + masses_LD
        enough_LD = (count_LD >= top_k_L1) | (mass_LD >= need_L1)
        digit_L1 = (enough_LD.sum(-1, keepdim=True) - 1).clamp_(min=0)
        count_above_L1 = count_LD.gather(1, digit_L1) - counts_LD.gather(1, digit_L1)
        mass_above_L1 = mass_LD.gather(1, digit_L1) - masses_LD.gather(1, digit_L1)
        chosen_L1 = (chosen_L1 << width) | digit_L1
    return _value((chosen_L1 - 2**31).squeeze(1).int())


def _key(x: torch.Tensor) -> torch.Tensor:
    """float32 -> int32 in the same order."""
    bits = x.view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _value(key: torch.Tensor) -> torch.Tensor:
    """The inverse of `_key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32)


# ------------------------------------------------------------------ the draw


def weights(x_LV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(x), its rows padded with zeros to whole blocks, and its sums in float64: [L, ceil(V / BLOCK) * BLOCK], [L]."""
    rows, vocab_size = x_LV.shape
    padded = -(-vocab_size // BLOCK) * BLOCK
    w_LV = torch.empty(rows, padded, dtype=x_LV.dtype, device=x_LV.device)
    w_LV[:, vocab_size:] = 0
    torch.exp(x_LV, out=w_LV[:, :vocab_size])
    return w_LV, block_sums(w_LV).sum(-1)


def block_sums(w_LV: torch.Tensor) -> torch.Tensor:
    """[L, blocks] in float64."""
    return w_LV.view(w_LV.shape[0], -1, BLOCK).sum(-1).double()


def draw(w_LV: torch.Tensor, uniform_L: torch.Tensor) -> torch.Tensor:
    """Token ids [L]: the inverse of the cumulated weights, in token order. uniform_L: float64 in [0, 1).

    The draw is of blocks first, then of the block's tokens, so that little is cumulated. A token of weight 0 is never drawn.
    """
    sums_LB = block_sums(w_LV)
    target_L1 = (uniform_L * sums_LB.sum(-1)).unsqueeze(1)
    block_L1, rest_L1 = _first_above(sums_LB, target_L1)
    columns = block_L1 * BLOCK + torch.arange(BLOCK, device=w_LV.device)
    inside_L1, _ = _first_above(w_LV.gather(1, columns).double(), rest_L1)
    return (block_L1 * BLOCK + inside_L1).squeeze(1)


def _first_above(w_LN: torch.Tensor, target_L1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first index whose cumulated weight exceeds the target, and how much of the target it has to make up itself."""
    sums_LN = w_LN.cumsum(-1)
    hits_LN = (sums_LN > target_L1) & (w_LN > 0)
    # Rounding may leave the target at the very end, where nothing exceeds it.
    index_L1 = torch.where(hits_LN.any(-1, keepdim=True), hits_LN.int().argmax(-1, keepdim=True), w_LN.argmax(-1, keepdim=True))
    before_L1 = sums_LN.gather(1, index_L1) - w_LN.gather(1, index_L1)
    return index_L1, (target_L1 - before_L1).clamp_(min=0)
