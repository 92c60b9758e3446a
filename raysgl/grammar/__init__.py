"""Constrained decoding: from a constraint to the tokens that may come next. No Ray, no GPU.

    vocabulary.py    a tokenizer as grammars see it
    limits.py        what is refused before any library sees it
    llguidance_backend.py, xgrammar_backend.py   the two grammar libraries behind one interface (`interface.py`)
    schema_rewrite.py   JSON schemas said with the keywords that llguidance knows (and schema_negation.py, schema_refs.py, schema_values.py)
    lark.py, structural_tags.py   grammars put together rule by rule, and structural tags as such
    sandbox.py       grammars are first compiled in a process of their own, which may take too long, or die
    compiler.py      compiles in threads, keeps what is used

`raysgl.engine.guides` has the sequences that follow a grammar. The libraries are imported where they are used: the scheduler, which
imports `interface.py`, loads neither them nor torch.
"""
