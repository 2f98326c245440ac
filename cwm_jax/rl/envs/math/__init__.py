"""Math with boxed answers: our comparer decides what is exact, math-verify what it leaves open.

`latex.py` tidies, `exact.py` calculates, `comparison.py` compares, `verifying.py` asks math-verify.
"""
