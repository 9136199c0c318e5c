"""GRAPE's trajectory score and its stage costs."""
