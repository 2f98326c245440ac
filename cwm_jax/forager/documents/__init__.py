"""Code data for mid-training beside trajectories: changes of git repositories."""

from cwm_jax.forager.documents.collection import Counts, Document, Dropped, write_documents

__all__ = ["Counts", "Document", "Dropped", "write_documents"]
