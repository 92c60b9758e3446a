"""One replica: request state, scheduler, step plan, loop, model runner.

`scheduler`, `loop`, `plan` and what they import know neither torch nor Ray nor HTTP; `runner` is where torch begins.
"""
