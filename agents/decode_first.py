"""The decode-first problem: batches of k tiles, decodes first, as a semi-Markov decision process.

One engine with Poisson arrivals and a staircase batch time chooses, iteration by iteration, how many
tiles to open; decodes go first, prompts FCFS fill the rest. Prompts have a fixed length, outputs a
geometric one, so prompt tokens waiting (P) and requests that decode (D) are all that matters: given
them the future does not depend on the past, and no decode-first policy that does not know the outputs
in advance can do better than the best function of (P, D).

The table of states is cut off where so many prompts wait, or so many requests decode, that it hardly
ever matters; an arrival beyond it is turned away at a cost above what serving it would add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse, stats
from scipy.sparse.linalg import LinearOperator, bicgstab

NEGLIGIBLE = 1e-12
"""Outcomes of an iteration that are less probable are left out."""


@dataclass(frozen=True)
class DecodeFirst:
    """The problem with its truncation. Times in seconds, costs in request-seconds.

    A state is (p, D): D requests decode, and p / residues prompts wait, that is P = p * prompt_tokens /
    residues tokens; the first of them may be part done. With ``residues = prompt_tokens`` p counts
    tokens and the model is exact. With fewer, an iteration that would end between two values of p goes
    to either with the probabilities that keep its mean.

    Attributes:
        rate: arrivals per second, lambda.
        sizes, times: tokens and seconds of a batch of 1..K tiles.
        prompt_tokens, output_tokens: length of every prompt, and mean length of the outputs.
        residues: states between two whole prompts.
        most_waiting, most_decoding: largest number of prompts and of decodes.
    """

    rate: float
    sizes: tuple[int, ...]
    times: tuple[float, ...]
    prompt_tokens: int
    output_tokens: float
    residues: int
    most_waiting: int
    most_decoding: int

    @property
    def shape(self) -> tuple[int, int]:
        """Values of p and of D; a state is numbered p * shape[1] + D."""
        return self.most_waiting * self.residues + 1, self.most_decoding + 1

    @property
    def waiting(self) -> np.ndarray:
        """Prompts that wait, for every p."""
        return -(-np.arange(self.shape[0]) // self.residues)

    @cached_property
    def turned_away(self) -> float:
        """Cost of an arrival that finds no room: more than serving it would add.

        That is its own stay in the slowest iterations, and the delay that its work causes to all others,
        until an engine that serves at its best rate has recovered.
        """
        work = (self.prompt_tokens + self.output_tokens) * self.times[-1] / self.sizes[-1]
        stay = self.output_tokens * self.times[-1]
        delay = (self.most_waiting + self.most_decoding) * work
        return (stay + delay) / max(1 - self.rate * work, 0.01)

    @cached_property
    def valid(self) -> np.ndarray:
        """Whether k tiles may be opened (K, states): the last of them must hold a token."""
        tokens = np.arange(self.shape[0])[:, None] * (self.prompt_tokens / self.residues)
        work = (tokens + np.arange(self.shape[1])).ravel()
        below = np.array((0, *self.sizes[:-1]))
        return work > below[:, None] + 1e-9

    @cached_property
    def _arrivals(self) -> tuple[np.ndarray, np.ndarray]:
        """For each k: chances of going from w to w' prompts (K, w, w'); mean arrivals without room (K, w)."""
        most = self.most_waiting
        moves = np.zeros((len(self.times), most + 1, most + 1))
        away = np.zeros((len(self.times), most + 1))
        for k, time in enumerate(self.times):
            law = stats.poisson(self.rate * time)
            count = np.arange(int(law.isf(NEGLIGIBLE)) + 2)
            chance = law.pmf(count) / law.pmf(count).sum()
            for waiting in range(most + 1):
                after = waiting + count
                np.add.at(moves[k, waiting], np.minimum(after, most), chance)
                away[k, waiting] = chance @ np.maximum(after - most, 0)
        return moves, away

    def arrive(self, h: np.ndarray, k: int) -> np.ndarray:
        """Expected ``h`` (states,) after the arrivals during an iteration of k + 1 tiles."""
        moves, _ = self._arrivals
        rows = np.zeros(((self.most_waiting + 1) * self.residues, self.shape[1]))
        rows[self.residues - 1 :] = h.reshape(self.shape)  # whole prompts end a block of rows
        blocks = moves[k] @ rows.reshape(self.most_waiting + 1, -1)
        return blocks.reshape(rows.shape)[self.residues - 1 :].ravel()

    @cached_property
    def _served(self) -> tuple[list[sparse.csr_array], np.ndarray]:
        """For each k: where the batch leads before arrivals, and the decodes that find no room.

        The first are matrices (states, states) whose rows are empty where k is not valid, the second
        means (K, states).
        """
        states = self.shape[0] * self.shape[1]
        matrices, lost = [], []
        for k in range(len(self.sizes)):
            columns = zip(*self._moves(k), strict=True)
            source, target, chance, over = (np.concatenate(c) for c in columns)
            entries = (chance, (source, target))
            matrices.append(sparse.csr_array(entries, shape=(states, states)))
            lost.append(np.bincount(source, chance * over, minlength=states))
        return matrices, np.array(lost)

    @property
    def serve(self) -> list[sparse.csr_array]:
        """For each k: where the batch leads before arrivals (states, states); empty rows if not valid."""
        return self._served[0]

    def _moves(self, k: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Entries of ``serve`` for one D after another: state, next state, probability, decodes lost."""
        columns, waiting = self.shape[1], self.waiting
        valid = self.valid[k].reshape(self.shape)
        for decoding in range(columns):
            p = np.flatnonzero(valid[:, decoding])
            decodes = min(decoding, self.sizes[k])
            room = (self.sizes[k] - decodes) * self.residues / self.prompt_tokens
            left = np.maximum(p - room, 0.0)
            lower = np.floor(left + 1e-9).astype(int)
            share = np.clip(left - lower, 0.0, 1.0)
            ends = np.arange(decodes + 1)
            chance = stats.binom.pmf(ends, decodes, 1 / self.output_tokens)
            ends, chance = ends[chance > NEGLIGIBLE], chance[chance > NEGLIGIBLE]
            chance = chance / chance.sum()
            for to, weight in ((lower, 1 - share), (lower + 1, share)):
                some = weight > 1e-9
                if not some.any():
                    continue
                begun = waiting[p[some]] - waiting[to[some]]
                then = decoding + begun[:, None] - ends
                over = np.maximum(then - self.most_decoding, 0)
                source = np.repeat(p[some] * columns + decoding, ends.size)
                target = to[some][:, None] * columns + then - over
                probability = weight[some][:, None] * chance
                yield source, target.ravel(), probability.ravel(), over.ravel()

    @cached_property
    def durations(self) -> np.ndarray:
        """Mean seconds of each choice (K, states); the empty engine waits for an arrival."""
        tau = np.repeat(np.array(self.times)[:, None], self.valid.shape[1], axis=1)
        tau[:, 0] = 1 / self.rate
        return tau

    @cached_property
    def costs(self) -> np.ndarray:
        """Request-seconds of each choice (K, states): those present, those that come, those turned away."""
        present = (self.waiting[:, None] + np.arange(self.shape[1])).ravel()
        time = np.array(self.times)[:, None]
        cost = present * time + self.rate * time**2 / 2 + self.away.sum(axis=0)
        cost[:, 0] = 0.0
        return cost

    @cached_property
    def away(self) -> np.ndarray:
        """Cost of the requests that each choice turns away (2, K, states): arrivals, and new decodes."""
        over = [np.repeat(n[self.waiting], self.shape[1]) for n in self._arrivals[1]]
        arrivals = np.array([rows @ n for rows, n in zip(self.serve, over, strict=True)])
        return np.stack([arrivals, self._served[1]]) * self.turned_away

    def _next_values(self, h: np.ndarray, k: int, rows: sparse.csr_array) -> np.ndarray:
        """Expected ``h`` after an iteration of k + 1 tiles, with ``rows`` of ``serve[k]``."""
        return rows @ self.arrive(h, k)

    def choices(self, h: np.ndarray, g: float) -> np.ndarray:
        """Value of each choice (K, states): cost - g * duration + expected h; infinite if not valid."""
        then = np.array([self._next_values(h, k, rows) for k, rows in enumerate(self.serve)])
        then[:, 0] = h[self.residues * self.shape[1]]  # the first prompt comes
        value = self.costs - g * self.durations + then
        valid = self.valid.copy()
        valid[0, 0] = True
        return np.where(valid, value, np.inf)

    def bounds(self, value: np.ndarray, h: np.ndarray, g: float) -> tuple[float, float]:
        """Bounds on the least average cost per second (MacQueen), lower and upper.

        They are those of the equivalent problem in discrete time (Schweitzer 1971), in which a choice
        lasts a fixed short time and the state stays as it is with the rest of the probability.

        Args:
            value: ``choices(h, g)`` (K, states).
            h: relative values (states,), request-seconds.
            g: guess of the average cost per second.
        """
        drift = np.min((value - h) / self.durations, axis=0)
        return g + float(drift.min()), g + float(drift.max())

    def evaluate(
        self,
        best: np.ndarray,
        h: np.ndarray,
        g: float,
        cost: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """Relative values (states,) and average cost per second of fixed choices, by BiCGSTAB.

        Solves h + g * duration = cost + expected h with h = 0 in the empty state, until a thousandth
        of the guess's error is left.

        Args:
            best: the choice in every state (states,), one tile less than it opens.
            h, g: guess of the relative values (states,) and of the average cost.
            cost: of the choice in every state (states,); None: ``costs``.
        """
        own = np.arange(h.size)
        duration = self.durations[best, own]
        cost = self.costs[best, own] if cost is None else cost
        chosen = [
            (sparse.diags_array((best == k).astype(float)) @ rows).tocsr()
            for k, rows in enumerate(self.serve)
        ]
        for rows in chosen:
            rows.eliminate_zeros()
        used = [(k, rows) for k, rows in enumerate(chosen) if rows.nnz]

        def residual(x: np.ndarray) -> np.ndarray:
            values = x.copy()
            values[0] = 0.0
            then = np.sum([self._next_values(values, k, rows) for k, rows in used], axis=0)
            then[0] = values[self.residues * self.shape[1]]
            return values - then + x[0] * duration

        guess = h - h[0]
        guess[0] = g
        system = LinearOperator((h.size, h.size), matvec=residual, dtype=float)
        remain = 1e-3 * float(np.linalg.norm(cost - residual(guess)))
        x, _ = bicgstab(system, cost, x0=guess, rtol=1e-12, atol=remain, maxiter=300)
        g, x[0] = float(x[0]), 0.0
        return x, g

    def refine(self, h: np.ndarray, coarse: DecodeFirst) -> np.ndarray:
        """A guess of the values (states,): those of ``coarse``, with fewer residues, interpolated."""
        at = np.arange(self.shape[0]) * (coarse.residues / self.residues)
        lower = np.minimum(at.astype(int), coarse.shape[0] - 2)
        share = (at - lower)[:, None]
        table = h.reshape(coarse.shape)
        return np.asarray((1 - share) * table[lower] + share * table[lower + 1]).ravel()
