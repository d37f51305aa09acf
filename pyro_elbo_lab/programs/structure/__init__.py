"""What a model and a guide are made of: their sites, and which depends on which."""
