"""How far results may be apart that differ by nothing but the order of additions."""

ANY_ORDER = 1e-9  # two backward passes in float64; on CUDA what several threads add up comes in any order
