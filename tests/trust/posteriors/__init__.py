"""Ten posteriors of posteriordb as Pyro programs, one a file; `registry` lists them."""
