"""Masked-language modelling's inputs: whole words hidden, the tokens to predict."""

import torch


def mask_words(ids: torch.Tensor, starts_word: torch.Tensor, special: int, mask_id: int, probability: float,
               generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(input, chosen), both [batch, seq]: whole words are chosen with `probability`.

    Of the chosen tokens 80 % become `mask_id`, 10 % a random token, 10 % stay (Devlin et al. 2019, arXiv:1810.04805).
    `starts_word` says of each id whether it begins a word; ids below `special` and `mask_id` are never chosen.
    """
    word = starts_word[ids].cumsum(1)
    chosen = torch.rand(ids.shape[0], ids.shape[1] + 1, generator=generator).gather(1, word) < probability
    chosen &= (ids >= special) & (ids != mask_id)
    kind = torch.rand(ids.shape, generator=generator)
    masked = ids.clone()
    masked[chosen & (kind < 0.8)] = mask_id
    noise = chosen & (kind >= 0.9)
    masked[noise] = torch.randint(special, len(starts_word), (int(noise.sum()),), generator=generator)
    return masked, chosen


def predicted_positions(chosen: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Exactly `count` flat positions of `chosen`, at random, some twice if there are too few.

    A fixed number keeps compiled shapes fixed, and the product with the vocabulary is for these tokens alone.
    """
    positions = chosen.view(-1).nonzero().squeeze(1)
    positions = positions[torch.randperm(len(positions), generator=generator)]
    return positions.repeat(-(-count // max(len(positions), 1)))[:count]
