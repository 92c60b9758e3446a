"""Clients that nobody here wrote, unchanged, against a server with SmolLM2. `make test-clients` runs them.

They need an environment of their own (`requirements.txt`), so the suite does not collect this folder; in that environment
there is no raysgl: what a test needs of the server is in environment variables.
"""
