"""Anthropic's Messages API over chat completions: the request becomes a chat's, the answer's blocks Anthropic's content.

`endpoints` has the handlers; nothing else of `raysgl.api` imports from here but `raysgl.api.app`.
"""
