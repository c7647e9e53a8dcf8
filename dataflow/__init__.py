"""A program before it runs: the fluent API, the logical graph, and the physical plan."""
