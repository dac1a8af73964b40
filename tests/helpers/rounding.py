"""Tolerances for results that differ in nothing but the order of summation."""

ANY_ORDER = 1e-9  # two backward passes in float64; on CUDA threads add up in any order
