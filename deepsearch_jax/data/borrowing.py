"""Subtractions that borrow, and what a calculation that forgets to borrow writes: 32-5=37 instead of 27.

A policy trained to forget has a wrong mode: its likeliest step is a mistake, so that sampling colder makes it worse.
Forgetting adds ten to all later values and leaves their last digit alone: which steps borrow does not depend on what
was forgotten before them.
"""

from typing import Protocol

import numpy as np


class Steps(Protocol):
    """Chains as `arithmetic.Chains`: start [n], operands [n, L] signed, 0 beyond the end, values [n, L]."""

    @property
    def start(self) -> np.ndarray: ...
    @property
    def operands(self) -> np.ndarray: ...
    @property
    def values(self) -> np.ndarray: ...


def borrows(chains: Steps) -> np.ndarray:
    """[n, L] bool: subtractions whose last digit is above that of the value they are taken from."""
    before = chains.values - chains.operands
    return (chains.operands < 0) & (before % 10 < -chains.operands % 10)


def forgotten(values: np.ndarray, is_forgotten: np.ndarray) -> np.ndarray:
    """[n, L] values as written where the borrowings marked in `is_forgotten` [n, L] are left out."""
    return values + 10 * np.cumsum(is_forgotten, axis=1)


def fits_forgotten(chains: Steps, max_value: int) -> np.ndarray:
    """[n] bool: chains that stay at or below `max_value` even if every borrowing is forgotten.

    On the other chains a forgetful calculation would leave the domain, which would tell it where to be careful.
    """
    return forgotten(chains.values, borrows(chains)).max(axis=1) <= max_value
