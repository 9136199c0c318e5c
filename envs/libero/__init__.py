"""Tasks of LIBERO and LIBERO-PRO, their goals and a scripted expert."""
