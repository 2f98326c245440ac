"""The published objectives as slow NumPy, each from returns and log-probabilities; to minimise.

``now`` and ``held`` are the policy's log-probabilities, for each trajectory those of its tokens:
differentiation is in ``now``, and what carries no gradient is a function of ``held``.
"""

from __future__ import annotations

import math

import numpy as np
from rl.drawn import Drawn

CISPO_HIGH = 0.25
CAP = 1.3


def report(drawn: list[Drawn], now, held, room: int) -> float:
    total = 0.0
    for i, one in enumerate(drawn):
        A = _against_token_mean(one, drawn)
        total += sum(_ppo(now[i][t] - one.behaviour[t], A, 0.2, 0.25) for t in _actions(one))
    return -total / room


def grpo(drawn, now, held, room: int) -> float:
    total = 0.0
    for i, one in enumerate(drawn):
        A, mean = _normalised(one, drawn), 0.0
        for t in _actions(one):
            mean += _ppo(now[i][t] - one.behaviour[t], A, 0.2, 0.2)
            away = one.reference[t] - now[i][t]
            mean -= 0.04 * (math.exp(away) - away - 1)
        total += mean / one.num_actions
    return -total / len(drawn)


def dr_grpo(drawn, now, held, room: int) -> float:
    total = 0.0
    for i, one in enumerate(drawn):
        A = one.reward - np.mean(_rewards(one, drawn))
        total += sum(_ppo(now[i][t] - one.behaviour[t], A, 0.2, 0.2) for t in _actions(one))
    return -total / room


def rloo(drawn, now, held, room: int) -> float:
    total = 0.0
    for i, one in enumerate(drawn):
        others = [other.reward for other in drawn if other.group == one.group and other is not one]
        A = one.reward - sum(others) / len(others)
        total += sum(_ppo(now[i][t] - one.behaviour[t], A, 0.2, 0.25) for t in _actions(one))
    return -total / room


def dapo(drawn, now, held, room: int) -> float:
    total, count = 0.0, 0
    for i, one in enumerate(drawn):
        A = _normalised(one, drawn)
        for t in _actions(one):
            total += _ppo(now[i][t] - one.behaviour[t], A, 0.2, 0.28)
            count += 1
    return -total / count


def gspo(drawn, now, held, room: int) -> float:
    total = 0.0
    for i, one in enumerate(drawn):
        logs = [now[i][t] - one.behaviour[t] for t in _actions(one)]
        total += _ppo(sum(logs) / len(logs), _normalised(one, drawn), 3e-4, 4e-4)
    return -total / len(drawn)


def cispo(drawn, now, held, room: int) -> float:
    total, count = 0.0, 0
    for i, one in enumerate(drawn):
        A = _normalised(one, drawn)
        for t in _actions(one):
            weight = min(math.exp(held[i][t] - one.behaviour[t]), 1 + CISPO_HIGH)
            total += weight * A * now[i][t]
            count += 1
    return -total / count


def truncated(drawn, now, held, room: int) -> float:
    """The report's with truncated importance weights: the policy before the step is ``held``."""
    total = 0.0
    for i, one in enumerate(drawn):
        A = _against_token_mean(one, drawn)
        for t in _actions(one):
            weight = min(math.exp(held[i][t] - one.behaviour[t]), CAP)
            total += weight * _ppo(now[i][t] - held[i][t], A, 0.2, 0.25)
    return -total / room


def truncated_gspo(drawn, now, held, room: int) -> float:
    total = 0.0
    for i, one in enumerate(drawn):
        logs = [now[i][t] - held[i][t] for t in _actions(one)]
        gain = _ppo(sum(logs) / len(logs), _normalised(one, drawn), 3e-4, 4e-4)
        weights = [min(math.exp(held[i][t] - one.behaviour[t]), CAP) for t in _actions(one)]
        total += gain * sum(weights) / len(weights)
    return -total / len(drawn)


def derivative(objective, drawn: list[Drawn], held, room: int, h: float = 1e-6):
    """Of an objective in each log-probability, by central differences."""
    found = []
    for i, one in enumerate(drawn):
        d = np.zeros(len(one.is_action))
        for t in _actions(one):
            ends = []
            for sign in (1, -1):
                now = [np.array(values, np.float64) for values in held]
                now[i][t] += sign * h
                ends.append(objective(drawn, now, held, room))
            d[t] = (ends[0] - ends[1]) / (2 * h)
        found.append(d)
    return found


def _actions(one: Drawn):
    return np.flatnonzero(one.is_action)


def _rewards(one: Drawn, drawn):
    return [other.reward for other in drawn if other.group == one.group]


def _against_token_mean(one: Drawn, drawn) -> float:
    own = [other for other in drawn if other.group == one.group]
    tokens = sum(other.num_actions for other in own)
    return one.reward - sum(other.reward * other.num_actions for other in own) / tokens


def _normalised(one: Drawn, drawn) -> float:
    rewards = _rewards(one, drawn)
    mean = sum(rewards) / len(rewards)
    return (one.reward - mean) / math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))


def _ppo(log_ratio: float, A: float, low: float, high: float) -> float:
    ratio = math.exp(log_ratio)
    return min(ratio * A, min(max(ratio, 1 - low), 1 + high) * A)
