"""Code data for mid-training beside trajectories: changes, compilers, kernels, proofs."""

from cwm_jax.forager.documents.collection import Counts, Document, Dropped, write_documents

__all__ = ["Counts", "Document", "Dropped", "write_documents"]
