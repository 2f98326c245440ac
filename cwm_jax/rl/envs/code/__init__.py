"""Code that is run on inputs it sees, and judged where it cannot look.

`inside.py` runs the policy's code in a sandbox that holds inputs alone and, in another sandbox, a
data set's assertions, where the policy's function is a proxy; `grading.py` stands between them. A
value crosses as the plain data of `inside.encode`.
"""
