"""What a choice's text becomes: reasoning, text and tool calls. Imported by the answers of `raysgl.api`."""
