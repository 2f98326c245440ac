"""What generated programs are written from, standard library only.

values and scope say what is known while a program is written; integers, conditions, strings and
containers are its expressions (chosen in expressions); bindings, changes, statements, iterations,
control and exceptions its statements; functions its helpers. cwm_jax.trace.generator puts them
together.
"""
