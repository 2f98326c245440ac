"""Code data for mid-training beside trajectories, from files that are there: nothing is fetched.

pull_requests has changes of git repositories, compiler C sources with compilers' output (of
toolchain, and of programs that c_programs writes), kernels PyTorch modules with Triton kernels, and
lean proofs state by state. collection has the filters that all share, and writes.
"""

from cwm_jax.forager.documents.collection import Counts, Document, Dropped, write_documents

__all__ = ["Counts", "Document", "Dropped", "write_documents"]
