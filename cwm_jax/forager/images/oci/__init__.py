"""Images as containers have them: an archive that engines load, or one put into an engine.

Either has the files of the image at /tmp, its checkout at /tmp/testbed, and its manifest in the
label ``cwm-jax.manifest``, from which `manifest_of_labels` reads it.
"""

from cwm_jax.forager.images.oci.containers import add_to_engine
from cwm_jax.forager.images.oci.layers import manifest_of_labels, needs
from cwm_jax.forager.images.oci.layout import write_layout

__all__ = ["add_to_engine", "manifest_of_labels", "needs", "write_layout"]
