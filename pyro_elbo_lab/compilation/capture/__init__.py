"""From a function of tensors that runs Pyro programs to a graph of aten operators."""
