"""LIBERO and LIBERO-PRO: 130 manipulation tasks of a Panda arm, and their perturbed variants."""
