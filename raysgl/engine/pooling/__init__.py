"""One replica of a model that makes numbers of texts (vectors, labels, scores): its scheduler and its runner.

The loop, the wires and the messages are those of models that generate. A text is computed whole, in one step, and nothing of it is kept;
so there are neither pages nor slots. `texts` knows no torch.
"""
