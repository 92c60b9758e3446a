"""OpenAI's Responses API over chat completions, without state: nothing is stored, every request brings its whole input.

`endpoints` has the handler; nothing else of `raysgl.api` imports from here but `raysgl.api.app`.
"""
