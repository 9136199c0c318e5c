"""Task decomposers and the rewards built on their stages."""
