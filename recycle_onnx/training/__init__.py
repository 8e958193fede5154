"""Making the module: the torch model, its objective, its data and the loop that trains it. Needs the extra `train`."""
