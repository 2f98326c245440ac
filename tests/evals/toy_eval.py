"""``python -m cwm_jax`` with the toy set among the sets, for processes."""

import runpy

from cwm_jax.evals import catalog

if __name__ == "__main__":
    catalog.MODULES = (*catalog.MODULES, "toy_set")
    runpy.run_module("cwm_jax", run_name="__main__", alter_sys=True)
