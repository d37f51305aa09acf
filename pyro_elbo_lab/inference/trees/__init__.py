"""ArviZ trees of draws: from Pyro, from guides, from predictions."""
