"""`make test-cluster`: a cluster of several nodes under load, parts of which are killed, hung, replaced and flooded.

`nodes` starts the cluster (Ray's fake nodes on this machine) and knows its processes, `load` keeps streams running and compares every
answer with the undisturbed one, `failures` breaks things, `__main__` goes through them and prints what recovering took.
"""
