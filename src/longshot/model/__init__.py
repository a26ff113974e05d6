"""The network: rotary positions, attention over a `Layout`, the KV `Context`, and the MMDiT."""
